//! Commands of tasks: the example, and what is left of a command after its task.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::{
    Process, Site,
    process_table::{until_gone, until_running},
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
async fn running(site: &Site, worker: &str, submit: &str, script: &str) -> [Process; 3] {
    let sink = start(site, "sink");
    let worker = start(site, &format!("worker --slots 1 {worker}"));
    let mut command = site.program(example());
    command.args(["producer", "submit"]).args(submit.split_whitespace());
    command.args(["words", "file", "--script", script]);
    let submit = Process::start("submit", command);
    [sink, worker, submit]
}

async fn job_of(submit: &mut Process) -> String {
    submit.says("job ").await.trim_start_matches("job ").to_owned()
}

#[tokio::test]
async fn example_counts_the_words_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["to be", "or not to be"].map(|text| {
        let file = dir.path().join(text.replace(' ', "-"));
        std::fs::write(&file, text).unwrap();
        file
    });
    let mut command = Command::new(example());
    command.args(["run", "words"]).args(files);
    assert_eq!(Process::start("run", command).end().await.answer(), "6");
}

#[tokio::test]
async fn failed_command_is_a_reason() {
    let mut command = Command::new(example());
    command.args(["run", "--max-attempts", "1", "words", "file", "--script"]);
    command.args(["echo \"no $1, password $GRISTMILL_PASSWORD.\" >&2; exit 3"]);
    command.env("GRISTMILL_PASSWORD", "secret");
    let ended = Process::start("run", command).end().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let reason = "the command `sh` exited with code 3: no file, password .";
    assert!(ended.stderr.contains(reason), "{ended:?}");
}

#[tokio::test]
async fn cancelled_job_leaves_no_command() {
    let site = Site::new();
    let [_sink, _worker, mut submit] = running(&site, "", "--wait", "sleep 4242.1 & sleep 4242.1").await;
    until_running("4242.1").await;
    let job = job_of(&mut submit).await;
    assert_eq!(start(&site, &format!("producer cancel {job}")).end().await.code, 0);
    until_gone("4242.1").await;
    assert_eq!(submit.end().await.code, 1);
}

#[tokio::test]
async fn time_limit_leaves_no_command() {
    let site = Site::new();
    let limits = "--wait --max-attempts 1 --task-timeout 500ms";
    let [_sink, worker, submit] = running(&site, "", limits, "trap '' TERM; sleep 4242.2").await;
    until_running("4242.2").await;
    let submitted = submit.end().await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    until_gone("4242.2").await;
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains("longer than the job's task timeout"), "{left:?}");
    assert!(!left.stderr.contains("leaving its thread behind"), "the slot's thread was lost: {left:?}");
}

#[tokio::test]
async fn worker_that_leaves_leaves_no_command() {
    let site = Site::new();
    let script = "trap '' TERM; sleep 4242.3";
    let [_sink, worker, _submit] = running(&site, "--grace 300ms", "--wait", script).await;
    until_running("4242.3").await;
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains("1 abandoned"), "{left:?}");
    until_gone("4242.3").await;
}

#[tokio::test]
async fn killed_worker_leaves_no_command() {
    let site = Site::new();
    let [_sink, worker, _submit] = running(&site, "", "--wait", "sleep 0.5; sleep 4242.4").await; // it is on the leash by then
    until_running("4242.4").await;
    worker.kill().await;
    until_gone("4242.4").await;
}
