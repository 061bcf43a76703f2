//! A container of the set of indices, as the ledger stores it.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../sink/src/index_set.rs"]
#[expect(dead_code, reason = "the sink uses the rest")]
mod index_set;

fuzz_target!(|input: (u16, &[u8])| {
    let mut set = index_set::IndexSet::default();
    if set.load(input.0.into(), input.1).is_ok() {
        let counted: u64 = set.ranges().map(|range| range.end - range.start).sum();
        assert_eq!(counted, set.len());
        assert!(set.end() >= set.len());
    }
});
