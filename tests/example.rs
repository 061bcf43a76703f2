//! The example of the documentation: a user's own job in a program of its own.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::Process;

/// Where cargo puts the example beside the tests.
fn collatz() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/collatz");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

#[tokio::test]
async fn a_job_of_ones_own_runs() {
    let mut command = Command::new(collatz());
    command.args(["run", "collatz", "--limit", "100000"]);
    let ended = Process::start("collatz", command).end().await;
    assert_eq!(ended.answer(), "77031 (350 steps)");
}

#[tokio::test]
async fn it_knows_its_own_kind_and_no_other() {
    let mut command = Command::new(collatz());
    command.args(["run", "primes", "--limit", "100"]);
    let ended = Process::start("collatz", command).end().await;
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("known: collatz"), "{ended:?}");
}

#[tokio::test]
async fn it_goes_by_its_own_name_and_shows_no_examples_of_ours() {
    let said = async |words: &str| {
        let mut command = Command::new(collatz());
        command.args(words.split_whitespace());
        Process::start("collatz", command).end().await.answer().to_owned()
    };
    assert_eq!(said("-V").await, concat!("collatz ", env!("CARGO_PKG_VERSION")));
    assert!(said("--help").await.contains("Exit codes: 0 ok"));
    for command in
        ["", "run", "producer", "producer submit", "worker", "sink", "setup", "doctor", "completions"]
    {
        let help = said(&format!("{command} --help")).await;
        assert!(!help.contains("Examples:") && !help.contains("crack"), "{command}: {help}");
    }
}
