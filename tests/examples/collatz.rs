//! The examples of the documentation: a user's own job in a program of its own, and a worker in
//! another language.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::{Process, Site};

/// Returns the path of the example, which cargo puts beside the tests.
pub(crate) fn collatz() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/collatz");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

#[tokio::test]
async fn custom_job_runs() {
    let mut command = Command::new(collatz());
    command.args(["run", "collatz", "--limit", "100000"]);
    let ended = Process::start("collatz", command).output().await;
    assert_eq!(ended.answer(), "77031 (350 steps)");
}

#[tokio::test]
async fn custom_program_has_only_its_kind() {
    let mut command = Command::new(collatz());
    command.args(["run", "primes", "--limit", "100"]);
    let ended = Process::start("collatz", command).output().await;
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("known: collatz"), "{ended:?}");
}

/// A user's program has its own name, and shows no examples of ours.
#[tokio::test]
async fn custom_program_has_its_own_help() {
    let said = async |words: &str| {
        let mut command = Command::new(collatz());
        command.args(words.split_whitespace());
        Process::start("collatz", command).output().await.answer().to_owned()
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

/// Returns the path of a Python that has pika.
pub(crate) fn python() -> String {
    let with_pika = |python: &str| {
        let script = "import pika, sys; print(sys.executable)";
        let tried = std::process::Command::new(python).args(["-c", script]).output().ok()?;
        tried.status.success().then(|| String::from_utf8(tried.stdout).unwrap().trim().to_owned())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find_map(with_pika);
    found.expect("no Python with pika (hint: pip install pika)")
}

/// Workers in another language finish a job although one of them is killed.
#[tokio::test]
async fn python_workers_survive_a_kill() {
    let site = Site::new();
    let collatz = |words: &str| {
        let mut command = site.program(collatz());
        command.args(words.split_whitespace());
        Process::start("collatz", command)
    };
    let worker = || {
        let mut command = site.program(python());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/worker.py"));
        Process::start("worker.py", command)
    };
    let mut sink = collatz("sink");
    sink.wait_for("serving").await;
    let (mut killed, mut left) = (worker(), worker());
    killed.wait_for("takes tasks").await;
    left.wait_for("takes tasks").await;
    let job = collatz("producer submit collatz --limit 200000").output().await.answer().to_owned();
    site.wait_for_outcomes(&job).await;
    killed.kill().await;
    assert_eq!(site.json(&format!("sink show {job} --json")).await["state"], "running", "killed too late");
    assert_eq!(collatz(&format!("producer wait {job}")).output().await.answer(), "156159 (382 steps)");
    site.verify(&job).await;
    assert_eq!(left.stop().await.code, 0);
}
