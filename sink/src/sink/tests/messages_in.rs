//! Messages that a sink consumes, and their results.

use super::*;
use crate::tests::toy_jobs::{SubmittedJob, garbage};

/// A sink that starts last consumes all messages.
#[tokio::test]
async fn late_sink_gets_everything() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let results = (0..50).map(|piece| job.done(piece * 10..piece * 10 + 10));
    publish(&transport, [job.opened()].into_iter().chain(results).chain([job.done(3..9), job.sealed(500)]))
        .await;
    let ledger = dir.path().join("ledger");
    let sink = RunningSink::start(config(&ledger), &transport);
    let finished = finished(&transport, job.id).await;
    assert_eq!((finished.account.done, finished.account.duplicates), (500, 6));
    let report = sink.stop().await.unwrap();
    assert_eq!(report, SinkReport { messages: 53, tasks: 500, jobs_ended: 1, dead: 0 });
    assert_eq!(
        waiting(&transport, &QueueRole::Results.of(&Lane::default())).await,
        0,
        "something was not acked"
    );
    assert!(read_ledger(&ledger).verify(job.id).unwrap().ok);
}

#[tokio::test]
async fn memory_ledger_serves_lane() {
    let (transport, job) = (MemoryTransport::new(), SubmittedJob::toy());
    let config = in_memory();
    let sink = RunningSink::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..10), job.sealed(10)]).await;
    assert_eq!(finished(&transport, job.id).await.conclusion.text, "45 from 10 tasks");
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn garbage_is_recorded() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let ledger = dir.path().join("ledger");
    let sink = RunningSink::start(config(&ledger), &transport);
    publish(&transport, [garbage(), job.opened(), garbage(), job.done(0..1), job.sealed(1)]).await;
    finished(&transport, job.id).await;
    let mut reader = read_ledger(&ledger);
    until("two dead messages", || reader.dead().unwrap().messages.len() == 2).await;
    let dead = reader.dead().unwrap().messages.remove(0);
    assert_eq!(dead.origin.as_deref(), Some("gristmill.default.results"));
    assert!(dead.reason.contains("spam.v1"), "{dead:?}");
    assert_eq!(sink.stop().await.unwrap().dead, 2);
    for role in [QueueRole::Results, QueueRole::Dead] {
        assert_eq!(waiting(&transport, &role.of(&Lane::default())).await, 0, "{role:?}");
    }
}

/// Tasks that are sent again wait for room in their queue, and delay no fact.
#[tokio::test]
async fn full_task_queue_delays_no_fact() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let tasks = QueueRole::Tasks.of(&Lane::default());
    let fill = || Outgoing { to: Address::Queue(tasks.clone()), message: garbage() };
    while publisher.publish(vec![fill()]).await[0] == Published::Confirmed {}
    let sink = RunningSink::start(config(&dir.path().join("ledger")), &transport);
    publish(&transport, [job.opened(), job.failed(&[0]), job.sealed(1), job.reopen(&[])]).await;
    journal_until(&transport, |fact| matches!(fact, Fact::Reopened(_))).await;
    let other = SubmittedJob::toy();
    publish(&transport, [other.opened(), other.sealed(0)]).await;
    finished(&transport, other.id).await;

    let mut worker = transport.consume(&tasks, 1).await.unwrap();
    let batch = async {
        loop {
            for delivery in worker.recv(1).await.unwrap() {
                delivery.receipt.ack();
                if delivery.message.job == Some(job.id) {
                    return delivery.message;
                }
            }
        }
    };
    let batch = timeout(WAIT_MAX, batch).await.expect("the task did not come");
    assert_eq!((&*batch.form, batch.headers.attempt), ("gristmill.batch.v1", 5), "attempt numbers go on");
    publish(&transport, [job.spans(&[(0, 1, "[5]")], &[], 1)]).await;
    let is_last = |fact: &Fact| matches!(fact, Fact::Finished(end) if end.job == job.id && end.round.0 == 1);
    journal_until(&transport, is_last).await;
    sink.stop().await.unwrap();
}
