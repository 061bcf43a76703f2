//! Commands of tasks: the example, and what is left of a command after its task.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::{
    Process, Site,
    process_table::{wait_gone, wait_running},
};

/// The path of the example, which cargo puts beside the tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/command");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

fn start(site: &Site, words: &str) -> Process {
    let mut command = site.program(example());
    command.args(words.split_whitespace());
    Process::start(words, command)
}

/// A sink, a worker whose one slot runs the script, and the job's submission, which waits.
async fn start_fleet(site: &Site, worker: &str, submit: &str, script: &str) -> [Process; 3] {
    let sink = start(site, "sink");
    let worker = start(site, &format!("worker --slots 1 {worker}"));
    let mut command = site.program(example());
    command.args(["producer", "submit"]).args(submit.split_whitespace());
    command.args(["words", "file", "--script", script]);
    let submit = Process::start("submit", command);
    [sink, worker, submit]
}

async fn read_job_id(submit: &mut Process) -> String {
    submit.wait_for("job 01").await.trim_start_matches("job ").to_owned()
}

#[tokio::test]
async fn example_counts_words() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["to be", "or not to be"].map(|text| {
        let file = dir.path().join(text.replace(' ', "-"));
        std::fs::write(&file, text).unwrap();
        file
    });
    let mut command = Command::new(example());
    command.args(["run", "words"]).args(files);
    assert_eq!(Process::start("run", command).output().await.answer(), "6");
}

/// A failed command is the reason of its task's failure, without the password.
#[tokio::test]
async fn failed_command_is_the_reason() {
    let mut command = Command::new(example());
    command.args(["run", "--max-attempts", "1", "words", "file", "--script"]);
    command.args(["echo \"no $1, password $GRISTMILL_PASSWORD.\" >&2; exit 3"]);
    command.env("GRISTMILL_PASSWORD", "secret");
    let ended = Process::start("run", command).output().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let reason = "the command `sh` exited with code 3: no file, password .";
    assert!(ended.stderr.contains(reason), "{ended:?}");
}

#[tokio::test]
async fn cancelled_job_leaves_no_command() {
    let site = Site::new();
    let [_sink, _worker, mut submit] = start_fleet(&site, "", "--wait", "sleep 4242.1 & sleep 4242.1").await;
    wait_running("4242.1").await;
    let job = read_job_id(&mut submit).await;
    assert_eq!(start(&site, &format!("producer cancel {job}")).output().await.code, 0);
    wait_gone("4242.1").await;
    assert_eq!(submit.output().await.code, 1);
}

#[tokio::test]
async fn time_limit_leaves_no_command() {
    let site = Site::new();
    let limits = "--wait --max-attempts 1 --task-timeout 500ms";
    let [_sink, worker, submit] = start_fleet(&site, "", limits, "trap '' TERM; sleep 4242.2").await;
    wait_running("4242.2").await;
    let submitted = submit.output().await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    wait_gone("4242.2").await;
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains("longer than the job's task timeout"), "{left:?}");
    assert!(!left.stderr.contains("abandoning its thread"), "the slot's thread was lost: {left:?}");
}

#[tokio::test]
async fn drained_worker_leaves_no_command() {
    let site = Site::new();
    let script = "trap '' TERM; sleep 4242.3";
    let [_sink, worker, _submit] = start_fleet(&site, "--grace 300ms", "--wait", script).await;
    wait_running("4242.3").await;
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains("1 abandoned"), "{left:?}");
    wait_gone("4242.3").await;
}

#[tokio::test]
async fn killed_worker_leaves_no_command() {
    let site = Site::new();
    let [_sink, worker, _submit] = start_fleet(&site, "", "--wait", "sleep 0.5; sleep 4242.4").await; // it is on the leash by then
    wait_running("4242.4").await;
    worker.kill().await;
    wait_gone("4242.4").await;
}
