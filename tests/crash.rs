//! The crash table of docs/reliability.md, row by row: a process dies or freezes at exactly that place, and afterwards every
//! task has one outcome, the sum is exact, and what came twice was ignored.

use gristmill_shared::fail_point::{Action, FailPoint, Fault, VARIABLE};

use crate::harness::{Ended, Process, Site};

/// In most tests here, in batches of [`BATCH`].
const TASKS: u64 = 200;
const BATCH: u64 = 10;

fn abort(point: FailPoint, time: u32) -> Fault {
    Fault { point, time, action: Action::Abort }
}

/// One of our programs, which this will happen to.
fn doomed(site: &Site, words: &str, fault: Fault) -> Process {
    site.start_with(words, |command| command.env(VARIABLE, fault.to_string()))
}

/// Waits until it has happened.
async fn dead(process: Process, fault: Fault) {
    let ended = process.end().await;
    assert_eq!(ended.code, Ended::ABORTED, "{ended:?}");
    assert_eq!(ended.stderr.matches(&fault.evidence()).count(), 1, "{ended:?}");
}

/// Submits the tasks to a lane without workers; they are all sent when this returns.
async fn submitted(site: &Site, micros: u32) -> String {
    let words = format!("producer submit spin --tasks {TASKS} --batch {BATCH} --micros {micros}");
    site.run(&words).await.answer().to_owned()
}

/// The job ends with the exact sum, and its ledger adds up.
async fn exact(site: &Site, job: &str, tasks: u64) {
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.answer().contains(&(tasks * (tasks - 1) / 2).to_string()), "{waited:?}");
    let verified = site.verify(job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(tasks), Some(0)));
}

async fn shown(site: &Site, job: &str) -> serde_json::Value {
    site.json(&format!("sink show {job} --json")).await
}

fn done(shown: &serde_json::Value) -> u64 {
    shown["account"]["done"].as_u64().unwrap()
}

/// What came again, or too late to be called that, and was ignored.
fn ignored(shown: &serde_json::Value) -> u64 {
    let of = |what: &str| shown["account"][what].as_u64().unwrap();
    of("duplicates") + of("late")
}

/// A worker dies, and another takes its place.
async fn worker_dies(fault: Fault) -> (Site, String, Process) {
    let site = Site::new();
    let sink = site.start("sink");
    let job = submitted(&site, 0).await;
    let victim = doomed(&site, "worker --slots 1", fault);
    dead(victim, fault).await;
    let _heir = site.start("worker --slots 1");
    exact(&site, &job, TASKS).await;
    (site, job, sink)
}

#[tokio::test]
async fn a_worker_that_dies_before_its_results_are_published_has_run_them_for_nothing() {
    let (site, job, _sink) = worker_dies(abort(FailPoint::WorkerRan, 1)).await;
    assert_eq!(ignored(&shown(&site, &job).await), 0);
}

#[tokio::test]
async fn a_worker_that_dies_before_its_results_are_confirmed_may_have_sent_them() {
    let (site, job, _sink) = worker_dies(abort(FailPoint::Sent, 1)).await;
    // All of a message or nothing.
    assert_eq!(ignored(&shown(&site, &job).await) % BATCH, 0);
}

#[tokio::test]
async fn a_worker_that_dies_before_it_acks_has_its_results_ignored_when_they_come_again() {
    let (site, job, _sink) = worker_dies(abort(FailPoint::WorkerStored, 1)).await;
    let account = site.shown(&job, |shown| ignored(shown) >= BATCH).await;
    assert_eq!(ignored(&account) % BATCH, 0, "{account}");
}

#[tokio::test]
async fn a_worker_that_was_frozen_for_too_long_changes_nothing_when_it_goes_on() {
    let site = Site::new();
    let _sink = site.start("sink");
    let job = submitted(&site, 0).await;
    let fault = Fault { point: FailPoint::WorkerRan, time: 1, action: Action::Stop };
    let broker = format!("{}?heartbeat=2", crate::broker_url());
    let mut frozen = site.start_with("worker --slots 1", |command| {
        command.env(VARIABLE, fault.to_string()).env("GRISTMILL_BROKER", broker)
    });
    frozen.says(&fault.evidence()).await;
    frozen.frozen().await;
    // The broker gives the frozen one's batches to the other as soon as it misses its heartbeats, and not before.
    let mut heir = site.start("worker --slots 1");
    heir.says("taking tasks").await;
    exact(&site, &job, TASKS).await;
    let before = shown(&site, &job).await;
    assert_eq!(ignored(&before), 0, "nothing was published before it froze: {before}");

    frozen.signal("-CONT").await;
    // It publishes what it had, as soon as its connection is back.
    let after = site.shown(&job, |shown| ignored(shown) > 0).await;
    assert!(ignored(&after) >= BATCH, "{after}");
    // Its stale acks took nothing from anybody: the lane goes on, and the job is as it was.
    let next = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(next.answer().contains("4950"), "{next:?}");
    assert_eq!(done(&shown(&site, &job).await), TASKS);
    site.verify(&job).await;
    for worker in [frozen, heir] {
        let ended = worker.stop().await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

/// A sink dies, and another goes on with its ledger. What the first one left, and what came of it.
async fn sink_dies(fault: Fault) -> (serde_json::Value, serde_json::Value) {
    let site = Site::new();
    let mut sink = doomed(&site, "sink", fault);
    sink.says("serving").await;
    let job = submitted(&site, 2_000).await;
    site.shown(&job, |shown| shown["sealed"] == true).await; // a commit without results
    let _worker = site.start("worker --slots 1");
    dead(sink, fault).await;
    let left = shown(&site, &job).await;
    let _heir = site.start("sink");
    exact(&site, &job, TASKS).await;
    (left, shown(&site, &job).await)
}

#[tokio::test]
async fn a_sink_that_dies_before_it_commits_gets_the_results_again_and_counts_them_once() {
    let (left, end) = sink_dies(abort(FailPoint::SinkFolded, 1)).await;
    assert_eq!((done(&left), ignored(&end)), (0, 0), "{left} {end}");
}

#[tokio::test]
async fn a_sink_that_dies_before_it_acks_gets_the_results_again_and_ignores_them() {
    let (left, end) = sink_dies(abort(FailPoint::SinkCommitted, 1)).await;
    assert!(done(&left) >= BATCH, "nothing was committed: {left}");
    assert_eq!(ignored(&end), done(&left), "{left} {end}");
}

#[tokio::test]
async fn a_sink_that_dies_before_it_tells_the_end_tells_it_when_it_is_back() {
    let site = Site::new();
    // First it tells that the job is open, and then that it has ended.
    let fault = abort(FailPoint::SinkTelling, 2);
    let mut sink = doomed(&site, "sink", fault);
    sink.says("serving").await;
    let job = submitted(&site, 0).await;
    site.shown(&job, |shown| shown["sealed"] == true).await;
    let mut waiting = site.start(&format!("producer wait {job}"));
    let _worker = site.start("worker --slots 1");
    dead(sink, fault).await;
    let left = shown(&site, &job).await;
    assert_eq!((done(&left), &left["state"]), (TASKS, &"finished".into()), "{left}");
    let told = tokio::time::timeout(std::time::Duration::from_millis(300), waiting.gone()).await;
    assert!(told.is_err(), "the end was told before the sink died");

    let _heir = site.start("sink");
    assert!(waiting.end().await.answer().contains("19900"));
    exact(&site, &job, TASKS).await;
}

/// A producer dies, and is resumed. No worker runs before, so the queue is full with a thousand batches and the producer
/// cannot have ended. What it left, and what came of it.
async fn producer_dies(tasks: u64, fault: Fault) -> (serde_json::Value, Site, String) {
    let site = Site::new();
    let sink = site.start("sink");
    let mut producer =
        doomed(&site, &format!("producer submit spin --tasks {tasks} --batch 2 --wait"), fault);
    let job = producer.says("job ").await.trim_start_matches("job ").to_owned();
    dead(producer, fault).await;
    let left = site.shown(&job, |_| true).await;
    assert_eq!(left["sealed"], false, "{left}");
    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job}")).await;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    exact(&site, &job, tasks).await;
    drop(sink);
    (left, site, job)
}

#[tokio::test]
async fn a_producer_that_dies_before_its_tasks_are_confirmed_sends_them_again() {
    // The first message opens the job.
    let (_, site, job) = producer_dies(5_000, abort(FailPoint::Sent, 3)).await;
    assert_eq!(ignored(&shown(&site, &job).await) % 2, 0);
}

#[tokio::test]
async fn a_producer_that_dies_before_it_notes_what_is_confirmed_sends_it_again_and_it_is_ignored() {
    let (_, site, job) = producer_dies(5_000, abort(FailPoint::ProducerConfirmed, 1)).await;
    let ignored = ignored(&shown(&site, &job).await);
    assert!(ignored >= 2, "nothing came twice");
}

#[tokio::test]
async fn a_producer_that_dies_before_the_seal_seals_when_it_is_resumed() {
    let (left, ..) = producer_dies(TASKS, abort(FailPoint::ProducerSplit, 1)).await;
    assert_eq!(left["state"], "running", "{left}");
}

#[tokio::test]
async fn a_producer_that_dies_before_it_tells_the_seal_sends_nothing_but_the_seal_again() {
    let (_, site, job) = producer_dies(TASKS, abort(FailPoint::ProducerSealed, 1)).await;
    assert_eq!(ignored(&shown(&site, &job).await), 0);
}

#[tokio::test]
async fn a_worker_that_misses_a_cancel_wastes_its_work_and_no_more() {
    let site = Site::new();
    let _sink = site.start("sink");
    let worker = site.start("worker --slots 1");
    let producer = site.start("producer submit spin --tasks 1000 --micros 20000 --batch 10");
    let job = producer.end().await.answer().to_owned();
    site.first_outcomes(&job).await;
    worker.signal("-STOP").await;
    worker.frozen().await;
    let told = site.run(&format!("producer cancel {job}")).await;
    assert_eq!(told.code, 0, "{told:?}");
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.stderr.contains("cancelled"), "{waited:?}");
    let before = shown(&site, &job).await;
    worker.signal("-CONT").await;

    let next = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(next.answer().contains("4950"), "{next:?}");
    let after = shown(&site, &job).await;
    assert_eq!(done(&before), done(&after), "something counted after the end: {after}");
    site.verify(&job).await;
    let ended = worker.stop().await;
    assert!(ended.code == 0 && !ended.stderr.contains(" 0 skipped"), "it ran what nobody needs: {ended:?}");
}
