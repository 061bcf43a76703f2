//! The crash table of docs/reliability.md, row by row: a process dies or freezes at exactly that
//! place. Afterwards every task has one outcome, the sum is exact, and repeats were ignored.

use gristmill_shared::fail_point::{Action, FAIL_POINT_VARIABLE, FailPoint, Fault};

use crate::harness::{Process, ProcessOutput, Site};

/// Number of tasks in most tests here, in batches of [`BATCH_SIZE`].
const TASK_COUNT: u64 = 200;
const BATCH_SIZE: u64 = 10;

fn abort_at(point: FailPoint, time: u32) -> Fault {
    Fault { point, time, action: Action::Abort }
}

/// Starts one of our programs with this fault.
fn start_with_fault(site: &Site, words: &str, fault: Fault) -> Process {
    site.start_with(words, |command| command.env(FAIL_POINT_VARIABLE, fault.to_string()))
}

/// Waits for the process to end, and asserts that the fault aborted it.
async fn expect_abort(process: Process, fault: Fault) {
    let ended = process.output().await;
    assert_eq!(ended.code, ProcessOutput::ABORTED, "{ended:?}");
    assert_eq!(ended.stderr.matches(&fault.evidence()).count(), 1, "{ended:?}");
}

/// Submits the tasks to a lane without workers; they are all sent when this returns.
async fn submit(site: &Site, micros: u32) -> String {
    let words = format!("producer submit spin --tasks {TASK_COUNT} --batch {BATCH_SIZE} --micros {micros}");
    site.run(&words).await.answer().to_owned()
}

/// Asserts that the job ends with the exact sum, and that its ledger adds up.
async fn assert_exact(site: &Site, job: &str, tasks: u64) {
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.answer().contains(&(tasks * (tasks - 1) / 2).to_string()), "{waited:?}");
    let verified = site.verify(job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(tasks), Some(0)));
}

async fn show(site: &Site, job: &str) -> serde_json::Value {
    site.json(&format!("sink show {job} --json")).await
}

fn done_count(shown: &serde_json::Value) -> u64 {
    shown["account"]["done"].as_u64().unwrap()
}

/// Returns the number of outcomes that were ignored, since they came again or too late.
fn ignored_count(shown: &serde_json::Value) -> u64 {
    let of = |what: &str| shown["account"][what].as_u64().unwrap();
    of("duplicates") + of("late")
}

/// Lets a worker die, and starts another one.
async fn crash_worker(fault: Fault) -> (Site, String, Process) {
    let site = Site::new();
    let sink = site.start("sink");
    let job = submit(&site, 0).await;
    let victim = start_with_fault(&site, "worker --slots 1", fault);
    expect_abort(victim, fault).await;
    let _heir = site.start("worker --slots 1");
    assert_exact(&site, &job, TASK_COUNT).await;
    (site, job, sink)
}

/// Results that were not published are lost with the worker, and their tasks run again.
#[tokio::test]
async fn worker_crash_before_publish_reruns_tasks() {
    let (site, job, _sink) = crash_worker(abort_at(FailPoint::WorkerRan, 1)).await;
    assert_eq!(ignored_count(&show(&site, &job).await), 0);
}

/// Results that were sent and not confirmed may be stored; their repeats are ignored.
#[tokio::test]
async fn worker_crash_before_confirm_is_exact() {
    let (site, job, _sink) = crash_worker(abort_at(FailPoint::Sent, 1)).await;
    // A message is stored whole or not at all.
    assert_eq!(ignored_count(&show(&site, &job).await) % BATCH_SIZE, 0);
}

/// Results of a batch that was not acked come again and are ignored.
#[tokio::test]
async fn worker_crash_before_ack_is_exact() {
    let (site, job, _sink) = crash_worker(abort_at(FailPoint::WorkerStored, 1)).await;
    let account = site.wait_shown(&job, |shown| ignored_count(shown) >= BATCH_SIZE).await;
    assert_eq!(ignored_count(&account) % BATCH_SIZE, 0, "{account}");
}

/// A worker that was frozen past its heartbeats changes nothing when it goes on.
#[tokio::test]
async fn frozen_worker_changes_nothing() {
    let site = Site::new();
    let _sink = site.start("sink");
    let job = submit(&site, 0).await;
    let fault = Fault { point: FailPoint::WorkerRan, time: 1, action: Action::Stop };
    let broker = format!("{}?heartbeat=2", crate::broker_url());
    let mut frozen = site.start_with("worker --slots 1", |command| {
        command.env(FAIL_POINT_VARIABLE, fault.to_string()).env("GRISTMILL_BROKER", broker)
    });
    frozen.wait_for(&fault.evidence()).await;
    frozen.wait_frozen().await;
    // The broker gives the frozen worker's batches to the other one as soon as heartbeats are
    // missing, and not before.
    let mut heir = site.start("worker --slots 1");
    heir.wait_for("taking tasks").await;
    assert_exact(&site, &job, TASK_COUNT).await;
    let before = show(&site, &job).await;
    assert_eq!(ignored_count(&before), 0, "nothing was published before it froze: {before}");

    frozen.signal("-CONT").await;
    // It publishes its results as soon as its connection is back.
    let after = site.wait_shown(&job, |shown| ignored_count(shown) > 0).await;
    assert!(ignored_count(&after) >= BATCH_SIZE, "{after}");
    // Its stale acks had no effect: the lane goes on, and the job is as it was.
    let next = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(next.answer().contains("4950"), "{next:?}");
    assert_eq!(done_count(&show(&site, &job).await), TASK_COUNT);
    site.verify(&job).await;
    for worker in [frozen, heir] {
        let ended = worker.stop().await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

/// Lets a sink die, and starts another one on its ledger. Returns the job as the first one left it,
/// and at its end.
async fn crash_sink(fault: Fault) -> (serde_json::Value, serde_json::Value) {
    let site = Site::new();
    let mut sink = start_with_fault(&site, "sink", fault);
    sink.wait_for("serving").await;
    let job = submit(&site, 2_000).await;
    site.wait_shown(&job, |shown| shown["sealed"] == true).await; // a commit without results
    let _worker = site.start("worker --slots 1");
    expect_abort(sink, fault).await;
    let left = show(&site, &job).await;
    let _heir = site.start("sink");
    assert_exact(&site, &job, TASK_COUNT).await;
    (left, show(&site, &job).await)
}

/// Results that were not committed come again and count once.
#[tokio::test]
async fn sink_crash_before_commit_is_exact() {
    let (left, end) = crash_sink(abort_at(FailPoint::SinkFolded, 1)).await;
    assert_eq!((done_count(&left), ignored_count(&end)), (0, 0), "{left} {end}");
}

/// Results that were committed and not acked come again and are ignored.
#[tokio::test]
async fn sink_crash_before_ack_is_exact() {
    let (left, end) = crash_sink(abort_at(FailPoint::SinkCommitted, 1)).await;
    assert!(done_count(&left) >= BATCH_SIZE, "nothing was committed: {left}");
    assert_eq!(ignored_count(&end), done_count(&left), "{left} {end}");
}

/// A sink that dies before it publishes a job's end publishes it after its restart.
#[tokio::test]
async fn sink_restart_publishes_the_end() {
    let site = Site::new();
    // The first publish says that the job is open, the second that it has ended.
    let fault = abort_at(FailPoint::SinkTelling, 2);
    let mut sink = start_with_fault(&site, "sink", fault);
    sink.wait_for("serving").await;
    let job = submit(&site, 0).await;
    site.wait_shown(&job, |shown| shown["sealed"] == true).await;
    let mut waiting = site.start(&format!("producer wait {job}"));
    let _worker = site.start("worker --slots 1");
    expect_abort(sink, fault).await;
    let left = show(&site, &job).await;
    assert_eq!((done_count(&left), &left["state"]), (TASK_COUNT, &"finished".into()), "{left}");
    let told = tokio::time::timeout(std::time::Duration::from_millis(300), waiting.wait()).await;
    assert!(told.is_err(), "the end was told before the sink died");

    let _heir = site.start("sink");
    assert!(waiting.output().await.answer().contains("19900"));
    assert_exact(&site, &job, TASK_COUNT).await;
}

/// Lets a producer die, and resumes its job. No worker runs before, so the queue is full with a
/// thousand batches and the producer cannot have ended. Returns the job as the producer left it,
/// the site and the job's id.
async fn crash_producer(tasks: u64, fault: Fault) -> (serde_json::Value, Site, String) {
    let site = Site::new();
    let sink = site.start("sink");
    let mut producer =
        start_with_fault(&site, &format!("producer submit spin --tasks {tasks} --batch 2 --wait"), fault);
    let job = producer.wait_for("job 01").await.trim_start_matches("job ").to_owned();
    expect_abort(producer, fault).await;
    let left = site.wait_shown(&job, |_| true).await;
    assert_eq!(left["sealed"], false, "{left}");
    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job}")).await;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    assert_exact(&site, &job, tasks).await;
    drop(sink);
    (left, site, job)
}

/// Tasks that were not confirmed are sent again by `producer resume`.
#[tokio::test]
async fn producer_crash_before_confirm_is_exact() {
    // The first message opens the job.
    let (_, site, job) = crash_producer(5_000, abort_at(FailPoint::Sent, 3)).await;
    assert_eq!(ignored_count(&show(&site, &job).await) % 2, 0);
}

/// Tasks that were confirmed and are not in the cursor are sent again and ignored.
#[tokio::test]
async fn producer_crash_before_cursor_is_exact() {
    let (_, site, job) = crash_producer(5_000, abort_at(FailPoint::ProducerConfirmed, 1)).await;
    let ignored = ignored_count(&show(&site, &job).await);
    assert!(ignored >= 2, "nothing came twice");
}

/// A producer that dies before the seal seals the job when it is resumed.
#[tokio::test]
async fn resumed_producer_seals_the_job() {
    let (left, ..) = crash_producer(TASK_COUNT, abort_at(FailPoint::ProducerSplit, 1)).await;
    assert_eq!(left["state"], "running", "{left}");
}

/// A producer that dies before it publishes the seal sends nothing else when it is resumed.
#[tokio::test]
async fn resumed_producer_sends_only_the_seal() {
    let (_, site, job) = crash_producer(TASK_COUNT, abort_at(FailPoint::ProducerSealed, 1)).await;
    assert_eq!(ignored_count(&show(&site, &job).await), 0);
}

/// A worker that misses a cancel wastes its work, and nothing else happens.
#[tokio::test]
async fn missed_cancel_only_wastes_work() {
    let site = Site::new();
    let _sink = site.start("sink");
    let worker = site.start("worker --slots 1");
    let producer = site.start("producer submit spin --tasks 1000 --micros 20000 --batch 10");
    let job = producer.output().await.answer().to_owned();
    site.wait_for_outcomes(&job).await;
    worker.signal("-STOP").await;
    worker.wait_frozen().await;
    let told = site.run(&format!("producer cancel {job}")).await;
    assert_eq!(told.code, 0, "{told:?}");
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.stderr.contains("cancelled"), "{waited:?}");
    let before = show(&site, &job).await;
    worker.signal("-CONT").await;

    let next = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(next.answer().contains("4950"), "{next:?}");
    let after = show(&site, &job).await;
    assert_eq!(done_count(&before), done_count(&after), "something counted after the end: {after}");
    site.verify(&job).await;
    let ended = worker.stop().await;
    assert!(ended.code == 0 && !ended.stderr.contains(" 0 skipped"), "it ran what nobody needs: {ended:?}");
}
