//! The example of a state per worker and job.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::{Process, Site};

/// The number of products of two primes below a million.
const SEMIPRIME_COUNT: &str = "210035";
/// The example's line when it makes its table.
const TABLE_LINE: &str = "making the table of factors below 1000000";

/// Returns the path of the example, which cargo puts beside the tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/state");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

/// A hundred tasks on four slots of one process share one table.
#[tokio::test]
async fn slots_share_one_state() {
    let mut command = Command::new(example());
    command.args(["run", "semiprimes", "--limit", "1000000", "--slots", "4", "--batch", "1"]);
    let ended = Process::start("state", command).output().await;
    assert_eq!(ended.answer(), SEMIPRIME_COUNT);
    assert_eq!(ended.stderr.matches(TABLE_LINE).count(), 1, "{ended:?}");
}

/// Each job of a worker has a table of its own, over a broker too.
#[tokio::test]
async fn each_job_opens_its_own_state() {
    let site = Site::new();
    let start = |words: &str| {
        let mut command = site.program(example());
        command.args(words.split_whitespace());
        Process::start("state", command)
    };
    let _sink = start("sink");
    let worker = start("worker --slots 2");
    for _ in 0..2 {
        let submitted = start("producer submit semiprimes --limit 1000000 --batch 1 --wait").output().await;
        assert_eq!(submitted.answer(), SEMIPRIME_COUNT, "{submitted:?}");
    }
    let ended = worker.stop().await;
    assert_eq!((ended.code, ended.stderr.matches(TABLE_LINE).count()), (0, 2), "{ended:?}");
}
