//! Resending of tasks that have no outcome.

use std::sync::Arc;

use gristmill_producer::{CursorDir, Producer, ProducerError, SplitEnd};
use gristmill_shared::{
    Address, Outgoing, QueueRole, Registry, Round, TaskIndex, Transport, erase,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{Audit, Batch, Missing, SinkMessage, WireMessage, decode},
};

use crate::harness::{Count, consume, count, drain, first_and_count, options, within};

/// The ranges that are missing from an index on, as first index and number, and the number of
/// missing tasks in all.
type MissingRangesFrom = fn(u64) -> (Vec<(u64, u64)>, u64);

/// A sink that answers audits and nothing else.
async fn answer_audits(transport: Arc<dyn Transport>, missing: MissingRangesFrom) {
    let mut results = consume(&*transport, QueueRole::Results).await;
    let publisher = transport.publisher().await.unwrap();
    loop {
        for delivery in results.recv(1).await.unwrap() {
            if let SinkMessage::Audit(Audit { job, from }) = SinkMessage::decode(&delivery.message).unwrap() {
                let (ranges, tasks) = missing(from.0);
                let ranges = ranges.into_iter().map(|(first, count)| (TaskIndex(first), count)).collect();
                let fact = Missing { job, round: Round(1), since_ms: None, from, ranges, tasks, version: 0 };
                let message = fact.message(format!("answer/{from}"), "sink");
                let outgoing = Outgoing { to: Address::Journal, message };
                publish_until_stored(&*publisher, vec![outgoing]).await.unwrap();
            }
            delivery.receipt.ack();
        }
    }
}

/// Submits a job of ten tasks, which are sent and sealed, and then loses its messages.
async fn submit_and_lose_tasks(
    transport: &Arc<dyn Transport>,
    cursors: &CursorDir,
) -> (Producer, Registry, gristmill_producer::Cursor) {
    let producer = Producer::new(Arc::clone(transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(10)), options(2)).await.unwrap();
    let id = submission.id();
    within(submission.send()).await.unwrap();
    drain(&**transport, QueueRole::Tasks).await;
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    (producer, registry, cursors.load(id).unwrap())
}

#[tokio::test]
async fn only_missing_tasks_are_resent() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let (producer, registry, cursor) = submit_and_lose_tasks(&transport, &CursorDir::new(dir.path())).await;
    let sink = tokio::spawn(answer_audits(Arc::clone(&transport), |from| match from {
        0 => (vec![(1, 1), (4, 3)], 6),
        7 => (vec![(8, 2)], 2),
        other => panic!("asked from {other} on"),
    }));
    let mut submission = within(producer.resume(&registry, cursor)).await.unwrap();
    let report = within(submission.send_missing()).await.unwrap();
    assert_eq!((report.sent, report.left), (6, 0));
    let sent = drain(&*transport, QueueRole::Tasks).await;
    assert_eq!(sent.iter().map(first_and_count).collect::<Vec<_>>(), [(1, 1), (4, 2), (6, 1), (8, 2)]);
    assert!(sent.iter().all(|message| decode::<Batch<'_>>(message).unwrap().round == Round(1)));
    assert_eq!(within(submission.send()).await.unwrap().end, SplitEnd::Sealed);
    sink.abort();
}

#[tokio::test]
async fn changed_split_resends_nothing() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let (producer, registry, cursor) = submit_and_lose_tasks(&transport, &CursorDir::new(dir.path())).await;
    let sink = tokio::spawn(answer_audits(Arc::clone(&transport), |_| (vec![(0, 10)], 10)));
    let other = gristmill_producer::Cursor { digest: gristmill_shared::SplitDigest::default(), ..cursor };
    let mut submission = within(producer.resume(&registry, other)).await.unwrap();
    let error = within(submission.send_missing()).await.unwrap_err();
    assert!(matches!(error, ProducerError::Changed(_)), "{error}");
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty());
    sink.abort();
}

#[tokio::test]
async fn unsent_tasks_are_not_missing() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let (producer, registry, cursor) = submit_and_lose_tasks(&transport, &CursorDir::new(dir.path())).await;
    let sink = tokio::spawn(answer_audits(Arc::clone(&transport), |_| (vec![(3, 97)], 97)));
    // The cursor after a crash at the very beginning.
    let fresh = gristmill_producer::Cursor {
        confirmed: TaskIndex(0),
        digest: gristmill_shared::SplitDigest::default(),
        sealed: None,
        ..cursor
    };
    let mut submission = within(producer.resume(&registry, fresh)).await.unwrap();
    let report = within(submission.send_missing()).await.unwrap();
    assert_eq!((report.sent, report.left), (0, 0));
    assert_eq!(within(submission.send()).await.unwrap().sent, 10, "it is sent as what is left of the split");
    sink.abort();
}

#[tokio::test(start_paused = true)]
async fn unanswered_audit_fails() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let cursors = CursorDir::new(dir.path());
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors, "1");
    let mut submission = producer.open(erase(count(10)), options(2)).await.unwrap();
    let error = submission.send_missing().await.unwrap_err();
    assert!(matches!(error, ProducerError::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("(hint:"), "{error}");
}
