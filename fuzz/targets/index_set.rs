//! A container of the set of indices, as the ledger stores it.

#![no_main]

use gristmill_ledger::IndexSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let mut set = IndexSet::default();
    if set.load(input.0.into(), input.1).is_ok() {
        let counted: u64 = set.ranges().map(|range| range.end - range.start).sum();
        assert_eq!(counted, set.len());
        assert!(set.end() >= set.len());
    }
});
