//! `--retry-delays`: how long failed tasks wait before their next try.

use std::time::{Duration, Instant};

use gristmill_shared::{
    Address, Headers, JobId, Outgoing, Policy, QueueRole, Round, TaskIndex, publish_until_stored,
    wire::{self, Batch, Results},
};
use serde_json::{json, value::to_raw_value};

use crate::{
    examples::collatz::python,
    harness::{Process, Site, within},
};

/// Three seconds are no step of the ladder: the task waits on the shortest one three times, on a
/// real broker.
#[tokio::test]
async fn retry_waits_its_delay() {
    let site = Site::new();
    let _sink = site.start("sink");
    let mut worker = site.start("worker --slots 1");
    let words = "producer submit spin --tasks 2 --panic 1 --max-attempts 2 --retry-delays 3s --wait --json";
    let began = Instant::now();
    let ended = site.run(words).await;
    let took = began.elapsed();
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(took >= Duration::from_secs(3), "{took:?}");
    worker.wait_for("attempt=1 again_in=3s").await;
    let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let job = end["job"].as_str().unwrap();
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert_eq!(shown["policy"]["retry_delays_ms"], json!([3_000]));
    let failures = site.run(&format!("sink failures {job}")).await;
    assert!(failures.stdout.contains("attempts: 2\tlosses: 0"), "a step cost a try: {failures:?}");
    site.verify(job).await;
}

/// A job in one process gives up after 17 s by default, a fleet after 11 minutes; of three tries it
/// is 2 s and 11 s.
#[tokio::test]
async fn run_waits_less_than_a_fleet() {
    let began = Instant::now();
    let ended = Site::new().run("gristmill run spin --tasks 2 --panic 1 --max-attempts 3").await;
    let took = began.elapsed();
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn bad_retry_delays_are_refused() {
    for (delays, part) in [("100ms", "\"100ms\" is out of range"), ("1s,soon", "\"soon\" is no duration")] {
        let words = format!("gristmill run spin --tasks 1 --retry-delays {delays}");
        let refused = Site::new().run(&words).await;
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(part) && refused.stderr.contains("1s,5s,1m"), "{refused:?}");
    }
}

/// The worker in Python moves a batch on that has still to wait, and sends its tasks with their
/// outputs if they are kept.
#[tokio::test]
async fn python_worker_waits_its_delay() {
    let site = Site::new();
    let transport = site.transport().await;
    let mut command = site.program(python());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/worker.py"));
    let mut worker = Process::start("worker.py", command);
    worker.wait_for("takes tasks").await;
    let message = Batch {
        job: JobId::generate(),
        kind: "collatz".parse().unwrap(),
        spec: &to_raw_value(&json!({"limit": 10})).unwrap(),
        policy: Policy { keep: Some("tasks".parse().unwrap()), ..Policy::default() },
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(0),
        count: 1,
        tasks: &to_raw_value(&[json!({"start": 1, "end": 10})]).unwrap(),
    }
    .to_message(Headers { attempt: 1, delay_ms: 2_000, ..Headers::default() }, "test");
    let to = Address::Queue(site.queue(QueueRole::Requeued));
    let publisher = transport.publisher().await.unwrap();
    let began = Instant::now();
    publish_until_stored(&*publisher, vec![Outgoing { to, message }]).await.unwrap();
    let mut consumer = transport.consume(&site.queue(QueueRole::Results), 1).await.unwrap();
    let delivery = within("the results", consumer.recv(1)).await.unwrap().remove(0);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let results: Results<'_> = wire::decode(&delivery.message).unwrap();
    let task: serde_json::Value = serde_json::from_str(results.done[0].tasks.unwrap().get()).unwrap();
    assert_eq!(task, json!([{"start": 1, "end": 10}]));
    delivery.receipt.ack();
    within("closing", transport.close()).await;
    assert_eq!(worker.stop().await.code, 0);
}
