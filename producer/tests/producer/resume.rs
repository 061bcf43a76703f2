//! Resuming of an interrupted split.

use std::{sync::Arc, time::Duration};

use gristmill_producer::{CursorDir, Producer, ProducerError, SplitEnd, SubmitOptions};
use gristmill_shared::{
    Account, Address, Lane, Outgoing, QueueRole, Registry, TASKS_MAX_MESSAGES, TaskIndex, Topic, Transport,
    erase,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{Progress, WireMessage},
};

use crate::harness::{Count, count, drain, first_and_count, options, seal, within};

/// An interrupted job resumes at its cursor and ends in the same seal.
#[tokio::test]
async fn resumed_job_has_same_seal() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let total = TASKS_MAX_MESSAGES + 500;
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();

    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(total)), options(1)).await.unwrap();
    let job = submission.id();
    // The queue fills up, the cursor is saved, and then the producer is dropped.
    let saved = async {
        loop {
            let cursor = cursors.load(job).unwrap();
            if cursor.confirmed.0 >= TASKS_MAX_MESSAGES {
                return cursor;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let cursor = tokio::select! {
        cursor = within(saved) => cursor,
        sent = submission.send() => panic!("the queue took all: {sent:?}"),
    };
    assert_eq!(cursor.confirmed.0, TASKS_MAX_MESSAGES);
    let before = drain(&*transport, QueueRole::Tasks).await;
    assert!(before.len() as u64 >= cursor.confirmed.0, "the cursor is ahead of what is stored");

    let other = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "2");
    assert!(matches!(other.resume(&registry, cursor.clone()).await, Err(ProducerError::Changed(_))));
    let resumed = producer.resume(&registry, cursor.clone()).await.unwrap();
    assert_eq!(within(resumed.send()).await.unwrap().sent, total);
    let after: Vec<_> = drain(&*transport, QueueRole::Tasks).await.iter().map(first_and_count).collect();
    assert_eq!(after.first(), Some(&(cursor.confirmed.0, 1)));
    assert_eq!(after.last(), Some(&(total - 1, 1)));
    let resumed_seal = seal(&drain(&*transport, QueueRole::Results).await);

    // A sealed job that is resumed repeats the seal and nothing else.
    let again = producer.resume(&registry, cursors.load(job).unwrap()).await.unwrap();
    within(again.send()).await.unwrap();
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty());
    assert_eq!(seal(&drain(&*transport, QueueRole::Results).await), resumed_seal);

    let whole: Arc<dyn Transport> = MemoryTransport::new();
    let submission =
        Producer::new(Arc::clone(&whole), "test").open(erase(count(total)), options(100)).await.unwrap();
    within(submission.send()).await.unwrap();
    assert_eq!(seal(&drain(&*whole, QueueRole::Results).await), resumed_seal);
}

/// Batches of a resumed job are sized by the measurements that the sink has.
#[tokio::test]
async fn resume_sizes_by_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(200_000)), SubmitOptions::default()).await.unwrap();
    let job = submission.id();
    drop(submission); // releases the cursor
    drain(&*transport, QueueRole::Results).await;
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();

    let resumed = producer.resume(&registry, cursors.load(job).unwrap()).await.unwrap();
    // The sink reports what its ledger has: a million tasks of a microsecond.
    assert_eq!(drain(&*transport, QueueRole::Results).await.len(), 1);
    let account = Account { done: 1_000_000, ..Account::default() };
    let progress = Progress { job, account, sealed: false, busy_us: 1_000_000 };
    let to = Address::Events(Topic::Job(Lane::default(), job));
    let message = progress.message("1".into(), "test");
    publish_until_stored(&*transport.publisher().await.unwrap(), vec![Outgoing { to, message }])
        .await
        .unwrap();
    within(resumed.send()).await.unwrap();
    let sizes: Vec<_> =
        drain(&*transport, QueueRole::Tasks).await.iter().map(|message| first_and_count(message).1).collect();
    assert!(sizes.contains(&10_000), "{sizes:?}");
}

#[tokio::test]
async fn changed_split_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(10)), options(1)).await.unwrap();
    let mut cursor = cursors.load(submission.id()).unwrap();
    drop(submission); // releases the cursor
    cursor.confirmed = TaskIndex(5); // with the digest of no tasks
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    let resumed = producer.resume(&registry, cursor).await.unwrap();
    let error = within(resumed.send()).await.unwrap_err();
    assert!(matches!(&error, ProducerError::Changed(why) if why.contains("first 5")), "{error}");
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty());
}

#[tokio::test]
async fn interrupt_saves_cursor() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let cursors = CursorDir::new(dir.path());
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    // More batches than the queue holds.
    let mut submission = producer.open(erase(count(5_000)), options(1)).await.unwrap();
    let id = submission.id();
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    let full = async {
        while cursors.load(id).unwrap().confirmed.0 < TASKS_MAX_MESSAGES {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let second = producer.resume(&registry, cursors.load(id).unwrap()).await;
        assert!(second.unwrap_err().to_string().contains("another producer is sending"));
    };
    let report = within(submission.send_until(full)).await.unwrap();
    assert_eq!((report.end, report.sent), (SplitEnd::Interrupted, TASKS_MAX_MESSAGES));
    assert_eq!(cursors.load(id).unwrap().confirmed.0, report.sent);
}
