//! Failed tasks, and jobs as a whole, as a user sees them.

use gristmill_shared::QueueRole;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicRejectOptions},
};
use serde_json::Value;

use crate::{broker_url, harness::Site};

fn parse_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A batch that the broker dead-letters is a failure of its tasks.
#[tokio::test]
async fn dead_lettered_batch_fails_its_tasks() {
    let site = Site::new();
    let _sink = site.start("sink");
    let job = site.run("producer submit spin --tasks 30 --batch 10").await.answer().to_owned();
    let connection = Connection::connect(&broker_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = site.queue(QueueRole::Tasks).to_string();
    let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
    let got = got.expect("a batch waits there");
    got.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    site.wait_shown(&job, |shown| shown["account"]["failed"] == 10).await;

    let _worker = site.start("worker --slots 1");
    let waited = site.run(&format!("producer wait {job}")).await;
    assert_eq!(waited.code, 1, "{waited:?}");
    let failures = parse_lines(&site.run(&format!("sink failures {job} --json")).await.stdout);
    assert_eq!(failures.len(), 10);
    // The batch that was first in the queue.
    let first = failures[0]["index"].as_u64().unwrap();
    for (index, failure) in (first..).zip(&failures) {
        assert_eq!(failure["index"].as_u64(), Some(index));
        assert_eq!(failure["reason"], "the broker gave it up: rejected", "{failure}");
        assert!(failure["worker"].is_null() && !failure["task"].is_null(), "{failure}");
    }
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(20), Some(10)));
    let retried = site.run(&format!("sink retry {job} --wait")).await;
    assert!(retried.answer().contains("435"), "what was given up can be sent again: {retried:?}");
}

/// Failures name their worker, and an export has everything.
#[tokio::test]
async fn failures_name_their_worker() {
    let site = Site::new();
    let (_sink, mut worker) = (site.start("sink"), site.start("worker --slots 1"));
    worker.wait_for("taking tasks").await;
    let submitted =
        site.run("producer submit spin --tasks 200 --fail-rate 0.2 --seed 5 --max-attempts 1 --wait").await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    let failures = parse_lines(&site.run(&format!("sink failures {job} --json")).await.stdout);
    assert!(!failures.is_empty());
    for failure in &failures {
        assert!(failure["worker"].as_str().unwrap().starts_with("worker-"), "{failure}");
        assert_eq!((failure["attempts"].as_u64(), failure["losses"].as_u64()), (Some(1), Some(0)));
    }
    let told = site.run(&format!("sink failures {job}")).await;
    assert!(told.stdout.lines().all(|line| line.contains("attempts: 1\tlosses: 0\tworker-")), "{told:?}");

    let export = parse_lines(&site.run(&format!("sink export {job}")).await.stdout);
    assert_eq!(export[0]["job"]["job"], Value::from(job.as_str()));
    let exported: Vec<_> = export.iter().filter_map(|line| line.get("failure").cloned()).collect();
    assert_eq!(exported, failures);
    let end = export.last().unwrap();
    assert_eq!(*end, serde_json::json!({"end": {"failures": failures.len(), "outputs": 0}}));
    assert_eq!(export.len(), failures.len() + 2);
}
