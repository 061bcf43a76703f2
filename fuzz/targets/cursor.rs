//! A cursor file, which people may edit.

#![no_main]

use gristmill_producer::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(cursor) = serde_json::from_slice::<Cursor>(text) {
        let again = serde_json::to_vec(&cursor).expect("a cursor is written as JSON");
        let read: Cursor = serde_json::from_slice(&again).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&read).ok(), Some(again));
    }
});
