//! The messages that a producer sends, and the end of its sending.

use std::{sync::Arc, time::Duration};

use gristmill_producer::{CancelOutcome, Producer, ProducerError, SplitEnd, SubmitOptions, cancel};
use gristmill_shared::{
    Lane, QueueRole, TASKS_MAX_MESSAGES, Transport, erase, memory::MemoryTransport, wire::SinkMessage,
};
use tokio::time::timeout;

use crate::harness::{Count, consume, count, drain, first_and_count, options, seal, within};

#[tokio::test]
async fn job_sent_in_order_and_sealed() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test");
    let submission = producer.open(erase(count(10)), options(4)).await.unwrap();
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty(), "a task was sent before the job was sent");
    let opened = drain(&*transport, QueueRole::Results).await;
    assert!(
        matches!(&SinkMessage::decode(&opened[0]).unwrap(), SinkMessage::Opened(opened) if opened.kind.as_str() == "count")
    );

    let report = within(submission.send()).await.unwrap();
    assert_eq!((report.end, report.sent), (SplitEnd::Sealed, 10));
    let batches: Vec<_> = drain(&*transport, QueueRole::Tasks).await.iter().map(first_and_count).collect();
    assert_eq!(batches, [(0, 4), (4, 4), (8, 2)]);
    assert_eq!(seal(&drain(&*transport, QueueRole::Results).await).0, 10);
}

#[tokio::test]
async fn refused_plan_sends_nothing() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let producer = Producer::new(Arc::clone(&transport), "test");
    let error = producer.open(erase(count(0)), options(1)).await.unwrap_err();
    assert!(matches!(error, ProducerError::Plan(why) if why.to_string() == "nothing to count"));
    assert!(drain(&*transport, QueueRole::Results).await.is_empty());
}

/// The backlog is bounded by the queue, and no task is lost or sent twice when it is full.
#[tokio::test]
async fn full_queue_bounds_backlog() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let total = TASKS_MAX_MESSAGES * 3;
    let submission =
        Producer::new(Arc::clone(&transport), "test").open(erase(count(total)), options(1)).await.unwrap();
    let mut sending = tokio::spawn(submission.send());
    let stuck = timeout(Duration::from_millis(300), &mut sending).await;
    assert!(stuck.is_err(), "it sent more than the queue holds");
    let mut consumer = consume(&*transport, QueueRole::Tasks).await;
    let mut seen = vec![0; usize::try_from(total).unwrap()];
    while seen.contains(&0) {
        for delivery in within(consumer.recv(500)).await.unwrap() {
            seen[usize::try_from(first_and_count(&delivery.message).0).unwrap()] += 1;
            delivery.receipt.ack();
        }
    }
    assert_eq!(within(sending).await.unwrap().unwrap().sent, total);
    assert!(seen.iter().all(|times| *times == 1), "refused messages were stored, or sent twice");
}

/// A failed split and a wrong plan abort the job, which is never sealed.
#[tokio::test]
async fn failed_split_aborts_job() {
    let failing = Count { fail_at: Some(5), ..count(10) };
    let wrong = Count { plan: Some(11), ..count(10) };
    let panicking = Count { panic: true, ..count(10) };
    for (job, reason) in [
        (panicking, "split failed before task 0: panic: no hands"),
        (failing, "split failed at task 5: out of fingers"),
        (wrong, "the job planned 11 tasks, but its split gave 10"),
    ] {
        let transport: Arc<dyn Transport> = MemoryTransport::new();
        let submission =
            Producer::new(Arc::clone(&transport), "test").open(erase(job), options(2)).await.unwrap();
        assert!(matches!(within(submission.send()).await, Err(ProducerError::Split(_))));
        let messages = drain(&*transport, QueueRole::Results).await;
        assert_eq!(messages.len(), 2);
        let last = SinkMessage::decode(&messages[1]).unwrap();
        assert!(matches!(&last, SinkMessage::Aborted(aborted) if aborted.reason == reason), "{last:?}");
    }
}

#[tokio::test]
async fn stopped_job_ends_split() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let endless = count(u64::MAX);
    let submission =
        Producer::new(Arc::clone(&transport), "test").open(erase(endless), options(1)).await.unwrap();
    let job = submission.id();
    let sending = tokio::spawn(submission.send());
    let mut consumer = consume(&*transport, QueueRole::Tasks).await;
    within(consumer.recv(1)).await.unwrap();
    let outcome =
        cancel(&*transport, &Lane::default(), job, Some(Lane::default()), "enough", "test").await.unwrap();
    assert_eq!(outcome, CancelOutcome::Broadcast);
    assert_eq!(within(sending).await.unwrap().unwrap().end, SplitEnd::Stopped);
    let messages = drain(&*transport, QueueRole::Results).await;
    assert!(
        matches!(&SinkMessage::decode(&messages[1]).unwrap(), SinkMessage::Cancelled(cancelled) if cancelled.reason == "enough")
    );
    assert_eq!(messages.len(), 2, "it was sealed");
}

#[tokio::test]
async fn unmeasured_tasks_travel_alone() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test");
    let submission = producer.open(erase(count(900)), SubmitOptions::default()).await.unwrap();
    within(submission.send()).await.unwrap();
    let batches: Vec<_> = drain(&*transport, QueueRole::Tasks).await.iter().map(first_and_count).collect();
    assert!(batches.iter().map(|(_, count)| *count).eq([1; 900]), "{batches:?}");
}
