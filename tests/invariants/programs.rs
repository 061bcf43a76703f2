//! Programs contain no code that only tests need: faulty transports, the conformance suite.
//!
//! Texts of that code are searched for in the programs. The tests' own binary, which has them, is
//! the control.

use std::fs;

/// A text of each part that only tests need.
const TEST_MARKERS: [&str; 2] = ["a fault that was asked for", " promises are broken"];

fn markers_in(path: &str) -> Vec<&'static str> {
    let program = fs::read(path).unwrap();
    let program = String::from_utf8_lossy(&program); // a search in text is fast without optimization
    TEST_MARKERS.into_iter().filter(|marker| program.contains(marker)).collect()
}

#[test]
fn programs_have_no_test_code() {
    for path in [
        env!("CARGO_BIN_EXE_gristmill"),
        env!("CARGO_BIN_EXE_producer"),
        env!("CARGO_BIN_EXE_worker"),
        env!("CARGO_BIN_EXE_sink"),
    ] {
        assert!(markers_in(path).is_empty(), "{path}: {:?}", markers_in(path));
    }
    let own = std::env::current_exe().unwrap();
    assert_eq!(markers_in(own.to_str().unwrap()), TEST_MARKERS, "this test cannot see test code");
}
