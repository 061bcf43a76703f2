//! A batch from a work queue, and its tasks one by one.

#![no_main]

use gristmill_shared::{
    Message,
    wire::{Batch, WireMessage as _, decode},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let message = Message { form: Batch::TYPE.into(), body: body.to_vec().into(), ..Message::default() };
    if let Ok(batch) = decode::<Batch<'_>>(&message)
        && let Ok(tasks) = batch.encoded_tasks()
    {
        assert_eq!(tasks.len(), batch.count as usize);
    }
});
