//! Floats keep their bits: in one process with any number of slots, and over RabbitMQ though
//! workers, sinks and producers die at chosen moments.

use std::path::PathBuf;

use futures::future::join_all;
use gristmill_shared::fail_point::{Action, FAIL_POINT_VARIABLE, FailPoint, Fault};

use crate::harness::{Process, ProcessOutput, Site};

/// The published sums of class S, and the number of pairs in each square ring.
const CLASS_S: (f64, f64) = (-3.24783465203474e3, -6.958407078382297e3);
const CLASS_S_COUNTS: &str = "[6140517, 5865300, 1100361, 68546, 1648, 17, 0, 0, 0, 0]";
/// The most that a sum may differ from the published one, as a share of it: the benchmark's own
/// rule.
const SUM_TOLERANCE: f64 = 1e-8;
const SINK_KILLS: usize = 20;
const JOB_COUNT: usize = 5;

/// Returns the path of an example, which cargo puts beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

/// Starts one of the examples in one of its roles.
fn start(site: &Site, name: &str, words: &str, fault: Option<Fault>) -> Process {
    let mut command = site.program(example(name));
    command.args(words.split_whitespace());
    if let Some(fault) = fault {
        command.env(FAIL_POINT_VARIABLE, fault.to_string());
    }
    Process::start(name, command)
}

fn abort_at(point: FailPoint, time: u32) -> Fault {
    Fault { point, time, action: Action::Abort }
}

/// Waits for the process to end, and asserts that the fault aborted it.
async fn expect_abort(process: Process, fault: Fault) {
    let ended = process.output().await;
    assert_eq!(ended.code, ProcessOutput::ABORTED, "{fault}: {ended:?}");
    assert_eq!(ended.stderr.matches(&fault.evidence()).count(), 1, "{ended:?}");
}

/// Returns the answer of a class in one process.
async fn run_answer(class: &str, slots: u32) -> String {
    let words = format!("run ep --class {class} --slots {slots}");
    start(&Site::new(), "ep", &words, None).output().await.answer().to_owned()
}

#[tokio::test]
async fn ep_bits_are_equal_for_any_slots() {
    let answer = run_answer("S", 1).await;
    assert!(answer.ends_with(CLASS_S_COUNTS), "{answer}");
    let words: Vec<&str> = answer.split(' ').collect();
    for (word, expected) in [(1, CLASS_S.0), (3, CLASS_S.1)] {
        let found: f64 = words[word].parse().unwrap();
        assert!(
            ((found - expected) / expected).abs() < SUM_TOLERANCE,
            "{found} and not {expected}: {answer}"
        );
    }
    for slots in [2, 3] {
        assert_eq!(run_answer("S", slots).await, answer, "with {slots} slots");
    }
}

/// `EP_CLASS` names a larger class, which needs a release build to end in time.
#[tokio::test]
async fn ep_bits_survive_ten_kills() {
    let class = std::env::var("EP_CLASS").unwrap_or_else(|_| "S".to_owned());
    // All batches fit into the queue before the first worker comes.
    let batch = if class == "S" { 1 } else { 16 };
    let site = Site::new();
    let ep = |words: &str, fault: Option<Fault>| start(&site, "ep", words, fault);
    let mut kills = 0;

    let sink = ep("sink", None);
    let fault = abort_at(FailPoint::Sent, 3);
    let mut producer = ep(&format!("producer submit ep --class {class} --batch {batch} --wait"), Some(fault));
    let job = producer.wait_for("job 01").await.trim_start_matches("job ").to_owned();
    expect_abort(producer, fault).await;
    kills += 1;
    for point in [FailPoint::ProducerSplit, FailPoint::ProducerSealed] {
        let fault = abort_at(point, 1);
        expect_abort(ep(&format!("producer resume {job}"), Some(fault)), fault).await;
        kills += 1;
    }
    let resumed = ep(&format!("producer resume {job}"), None).output().await;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    site.wait_shown(&job, |shown| shown["sealed"] == true).await;
    assert_eq!(sink.stop().await.code, 0);

    for point in [FailPoint::WorkerRan, FailPoint::Sent, FailPoint::WorkerStored] {
        let fault = abort_at(point, 1);
        expect_abort(ep("worker --slots 1", Some(fault)), fault).await;
        kills += 1;
    }
    let worker = ep("worker --slots 1", None);
    for (point, time) in [
        (FailPoint::SinkFolded, 1),
        (FailPoint::SinkFolded, 2),
        (FailPoint::SinkCommitted, 1),
        (FailPoint::SinkTelling, 1),
    ] {
        let fault = abort_at(point, time);
        expect_abort(ep("sink", Some(fault)), fault).await;
        kills += 1;
    }
    let _heir = ep("sink", None);
    let waited = ep(&format!("producer wait {job}"), None).output().await;
    assert_eq!(waited.answer(), run_answer(&class, 2).await, "after {kills} kills");
    assert_eq!(kills, 10);
    site.verify(&job).await;
    assert_eq!(worker.stop().await.code, 0);
}

/// Kills the sink of a job after each of its first commits. The worker stands still while there is
/// no sink, so that results are left for each of them.
async fn kill_sink_repeatedly(job: usize) {
    let site = Site::new();
    let values = |words: &str, fault: Option<Fault>| start(&site, "values", words, fault);
    let tasks = 400 + job;
    let sink = values("sink", None);
    let submit = format!("producer submit values --tasks {tasks} --millis 20 --batch 1");
    let id = values(&submit, None).output().await.answer().to_owned();
    site.wait_shown(&id, |shown| shown["sealed"] == true).await;
    assert_eq!(sink.stop().await.code, 0);

    let mut worker = values("worker --slots 1", None);
    worker.wait_for("taking tasks").await;
    for kill in 0..SINK_KILLS {
        // Before a commit, or after it and before its results are acknowledged.
        let point = if kill % 2 == 0 { FailPoint::SinkCommitted } else { FailPoint::SinkFolded };
        let fault = abort_at(point, 1);
        worker.signal("-STOP").await;
        let mut sink = values("sink", Some(fault));
        sink.wait_for("serving").await;
        worker.signal("-CONT").await;
        expect_abort(sink, fault).await;
    }
    let _heirs = [values("sink", None), values("worker --slots 32", None)].map(Some);
    let waited = values(&format!("producer wait {id}"), None).output().await;
    assert_eq!(waited.answer(), format!("{tasks} samples have their bits"));
    site.verify(&id).await;
}

#[tokio::test]
async fn float_bits_survive_sink_kills() {
    join_all((0..JOB_COUNT).map(kill_sink_repeatedly)).await;
}
