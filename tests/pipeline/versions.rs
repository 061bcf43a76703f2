//! Two builds of one program on one lane: before and after a change of its jobs.

use std::path::PathBuf;

use gristmill_shared::wire::{Batch, Results, WireMessage, decode};
use tokio::process::Command;

use crate::harness::{Process, Site};

/// The number of tasks of each job.
const TASK_COUNT: u64 = 500;
/// The answer: the sum of the numbers below [`TASK_COUNT`] by the old program, their squares by the
/// new one.
const NEW_ANSWER: u64 = (TASK_COUNT - 1) * TASK_COUNT * (2 * TASK_COUNT - 1) / 6;

/// Returns the path of an example, which cargo puts beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

/// A lane with a sink of the new build, and workers.
struct VersionedFleet {
    site: Site,
    sink: Process,
}

impl VersionedFleet {
    async fn new() -> Self {
        let site = Site::new();
        let mut sink = start(&site, "changed_new", "sink -v");
        sink.wait_for("serving").await;
        Self { site, sink }
    }

    async fn worker(&self, program: &str) -> Process {
        let mut worker = start(&self.site, program, "worker --slots 2 -v");
        worker.wait_for("taking tasks").await;
        worker
    }

    fn submit(&self, kind: &str, flags: &str) -> Process {
        start(
            &self.site,
            "changed_new",
            &format!("producer submit {kind} --tasks {TASK_COUNT} {flags} --batch 5"),
        )
    }

    /// Returns the id of the only job.
    async fn job(&self) -> String {
        let jobs = self.site.json("sink jobs --json").await;
        jobs[0]["job"].as_str().unwrap().to_owned()
    }
}

fn start(site: &Site, program: &str, words: &str) -> Process {
    let mut command: Command = site.program(example(program));
    command.args(words.split_whitespace());
    Process::start(&format!("{program} {words}"), command)
}

/// A worker with an old version of a kind leaves the tasks to other workers, and says so once.
#[tokio::test]
async fn old_worker_leaves_new_versions() {
    let fleet = VersionedFleet::new().await;
    let mut old = fleet.worker("changed_old").await;
    let submitted = fleet.submit("versioned", "--wait");
    old.wait_for("this worker has version 1 of the kind versioned, and the job has version 2").await;
    let new = fleet.worker("changed_new").await;
    assert_eq!(submitted.output().await.answer(), NEW_ANSWER.to_string());
    let ended = old.stop().await;
    assert!(ended.stderr.contains("stopped: 0 tasks done in 0 batches"), "{ended:?}");
    let said = ended.stderr.lines().filter(|line| line.contains("this worker has version 1")).count();
    assert_eq!(said, 1, "{ended:?}");
    let verified = fleet.site.verify(&fleet.job().await).await;
    assert_eq!((&verified["done"], &verified["failed"]), (&TASK_COUNT.into(), &0.into()));
    assert_eq!(new.stop().await.code, 0);
}

/// With old workers only a job waits, and no task fails.
#[tokio::test]
async fn job_waits_for_a_new_worker() {
    let fleet = VersionedFleet::new().await;
    let mut old = fleet.worker("changed_old").await;
    let submitted = fleet.submit("versioned", "--wait");
    old.wait_for("taking none for a while").await;
    let view = fleet.site.wait_shown(&fleet.job().await, |shown| shown["sealed"] == true).await;
    assert_eq!((&view["state"], &view["account"]["done"]), (&"running".into(), &0.into()));
    let new = fleet.worker("changed_new").await;
    assert_eq!(submitted.output().await.answer(), NEW_ANSWER.to_string());
    drop((old, new));
}

/// A change without a new version is invisible to programs, so the builds are named to users.
#[tokio::test]
async fn forgotten_version_names_builds() {
    let mut fleet = VersionedFleet::new().await;
    let (old, new) = (fleet.worker("changed_old").await, fleet.worker("changed_new").await);
    let ended = fleet.submit("forgotten", "--wait").output().await;
    assert!(ended.stderr.contains("2 builds worked on the job: build "), "{ended:?}");
    let job = fleet.job().await;
    fleet.sink.wait_for("workers of another build than the submitter's work on the job").await;
    let shown = fleet.site.run(&format!("sink show {job}")).await;
    assert_eq!(shown.stdout.matches("worked on  build ").count(), 2, "{shown:?}");
    let verified = fleet.site.run(&format!("sink verify {job}")).await;
    assert!(verified.stderr.contains("2 builds worked on the job"), "{verified:?}");
    drop((old, new));
}

/// `--same-build` keeps workers of other builds away.
#[tokio::test]
async fn same_build_excludes_others() {
    let fleet = VersionedFleet::new().await;
    let mut old = fleet.worker("changed_old").await;
    let submitted = fleet.submit("forgotten", "--wait --same-build");
    old.wait_for("is for the build that submitted it (--same-build)").await;
    let new = fleet.worker("changed_new").await;
    let ended = submitted.output().await;
    assert_eq!(ended.answer(), NEW_ANSWER.to_string());
    assert!(!ended.stderr.contains("builds worked on the job"), "{ended:?}");
    drop((old, new));
}

/// Types that were changed without a new version: tasks wait for a worker that can read them, and
/// none fails.
#[tokio::test]
async fn changed_types_fail_no_task() {
    for (kind, complaint) in [
        ("other-spec", "does not fit kind other-spec"),
        ("other-task", "does not decode as a task of kind other-task"),
    ] {
        let fleet = VersionedFleet::new().await;
        let mut old = fleet.worker("changed_old").await;
        let submitted = fleet.submit(kind, "--wait");
        old.wait_for(complaint).await;
        let new = fleet.worker("changed_new").await;
        assert_eq!(submitted.output().await.answer(), NEW_ANSWER.to_string(), "{kind}");
        let verified = fleet.site.verify(&fleet.job().await).await;
        assert_eq!((&verified["done"], &verified["failed"]), (&TASK_COUNT.into(), &0.into()), "{kind}");
        drop((old, new));
    }
}

/// The old worker cannot know that its outputs have the wrong type. The sink does, and the producer
/// sends their tasks again until the new worker has them.
#[tokio::test]
async fn wrong_output_type_runs_again() {
    let mut fleet = VersionedFleet::new().await;
    let old = fleet.worker("changed_old").await;
    let mut submitted = fleet.submit("other-output", "--wait");
    fleet.sink.wait_for("outcomes are refused: the output does not decode").await;
    submitted.wait_for("sending these tasks again").await;
    let new = fleet.worker("changed_new").await;
    old.signal("-TERM").await;
    assert_eq!(submitted.output().await.answer(), NEW_ANSWER.to_string());
    let job = fleet.job().await;
    let verified = fleet.site.verify(&job).await;
    assert_eq!((&verified["done"], &verified["failed"]), (&TASK_COUNT.into(), &0.into()));
    let refused =
        verified["builds"].as_array().unwrap().iter().map(|share| share["refused"].as_u64().unwrap());
    assert!(refused.sum::<u64>() > 0, "{verified}");
    drop(new);
}

/// A worker that is too old to know versions takes the tasks, and its results have no version.
#[tokio::test]
async fn unversioned_results_run_again() {
    let fleet = VersionedFleet::new().await;
    let submitted = fleet.submit("versioned", "");
    let job = submitted.output().await.answer().to_owned();
    let transport = fleet.site.transport().await;
    let mut tasks =
        transport.consume(&fleet.site.queue(gristmill_shared::QueueRole::Tasks), 10).await.unwrap();
    let delivery = tasks.recv(1).await.unwrap().remove(0);
    let batch: gristmill_shared::wire::Batch<'_> = gristmill_shared::wire::decode(&delivery.message).unwrap();
    let outputs = serde_json::from_str("[1,1,1,1,1]").unwrap();
    let results = Results {
        job: batch.job,
        round: batch.round,
        worker: "too-old".parse().unwrap(),
        busy_us: 1,
        done: vec![gristmill_shared::wire::OutputRun { first: batch.first, count: 5, outputs, tasks: None }],
        failed: Vec::new(),
        version: 0,
        build: None,
    };
    let message = results.message(format!("{job}/too-old#1"), "too-old");
    let to = gristmill_shared::Address::Queue(fleet.site.queue(gristmill_shared::QueueRole::Results));
    let publisher = transport.publisher().await.unwrap();
    gristmill_shared::publish_until_stored(&*publisher, vec![gristmill_shared::Outgoing { to, message }])
        .await
        .unwrap();
    delivery.receipt.ack();
    drop(tasks);
    let shown = fleet.site.wait_shown(&job, |shown| shown["refused"]["tasks"] == 5).await;
    assert_eq!(shown["account"]["done"], 0, "{shown}");
    // The producer has ended, so a user sends them again.
    let new = fleet.worker("changed_new").await;
    fleet.site.wait_shown(&job, |shown| shown["account"]["done"] == TASK_COUNT - 5).await;
    let resumed = start(&fleet.site, "changed_new", &format!("producer resume {job} --missing --wait"));
    let ended = resumed.output().await;
    assert_eq!(ended.answer(), NEW_ANSWER.to_string(), "{ended:?}");
    drop(new);
}

/// A mended program of a later version ends a job with failed tasks.
#[tokio::test]
async fn retry_can_adopt_a_new_version() {
    let site = Site::new();
    let mut sink = start(&site, "changed_old", "sink");
    sink.wait_for("serving").await;
    let job = {
        let submit = format!("producer submit versioned --tasks {TASK_COUNT} --batch 5 --max-attempts 1");
        start(&site, "changed_old", &submit).output().await.answer().to_owned()
    };
    // A worker that fails a batch for good: what is in the dead queue is given up.
    let transport = site.transport().await;
    let mut tasks = transport.consume(&site.queue(gristmill_shared::QueueRole::Tasks), 10).await.unwrap();
    let delivery = tasks.recv(1).await.unwrap().remove(0);
    let to = gristmill_shared::Address::Queue(site.queue(gristmill_shared::QueueRole::Dead));
    let publisher = transport.publisher().await.unwrap();
    let message = delivery.message.clone();
    // Batches that were sent at a time may come in another order.
    let first = decode::<Batch<'_>>(&message).unwrap().first.0;
    gristmill_shared::publish_until_stored(&*publisher, vec![gristmill_shared::Outgoing { to, message }])
        .await
        .unwrap();
    delivery.receipt.ack();
    drop(tasks);
    let mut old = start(&site, "changed_old", "worker");
    old.wait_for("taking tasks").await;
    site.wait_shown(&job, |shown| shown["state"] == "finished").await;
    drop(old);
    assert_eq!(sink.stop().await.code, 0);

    let mut sink = start(&site, "changed_new", "sink");
    sink.wait_for("serving").await;
    let mut new = start(&site, "changed_new", "worker");
    new.wait_for("taking tasks").await;
    let refused = start(&site, "changed_new", &format!("sink retry {job}")).output().await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("--adopt-version"), "{refused:?}");
    let retry = format!("sink retry {job} --adopt-version --wait");
    let ended = start(&site, "changed_new", &retry).output().await;
    let sum = TASK_COUNT * (TASK_COUNT - 1) / 2;
    let gained: u64 = (first..first + 5).map(|number| number * number - number).sum();
    assert_eq!(ended.answer(), (sum + gained).to_string(), "of the batch from {first} on");
    site.verify(&job).await;
}

/// The example that the guide's text on changes names.
#[tokio::test]
async fn versioned_example_counts_words() {
    let mut command = Command::new(example("changing"));
    command.args(["run", "count", "--text", "to be or\nnot to be"]);
    assert_eq!(Process::start("changing", command).output().await.answer(), "6");
}
