//! Prefetch, acks, and consumers that come and go.

use gristmill_shared::{QueueRole, Settlement};

use super::*;

/// An unsettled delivery does not block the rest of the prefetch.
#[tokio::test]
async fn slow_delivery_blocks_no_other() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..500)).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    let slow = receive(&mut consumer, 1).await.remove(0);
    let mut held = Vec::new();
    for _ in 1..500 {
        held.extend(receive(&mut consumer, 1).await);
        if held.len() == 9 {
            held.reverse(); // the prefetch is used up: the last comes first
            held.drain(..8).for_each(|delivery| delivery.receipt.ack());
        }
    }
    held.into_iter().for_each(|delivery| delivery.receipt.ack());
    slow.receipt.ack();
    within(consumer.close()).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    assert_no_delivery(&mut consumer).await;
}

/// A requeued delivery is redelivered; its acked neighbours are not.
#[tokio::test]
async fn requeue_redelivers_only_itself() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..5)).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    for (number, delivery) in receive(&mut consumer, 5).await.into_iter().enumerate() {
        match if number == 2 { Settlement::Requeue } else { Settlement::Ack } {
            Settlement::Ack => delivery.receipt.ack(),
            Settlement::Requeue => delivery.receipt.requeue(),
        }
    }
    let again = receive(&mut consumer, 1).await;
    assert_eq!((ids(&again), again[0].is_redelivered()), (vec!["2"], true));
    assert_no_delivery(&mut consumer).await;
}

/// A stopped consumer yields the messages that it has prefetched; the others stay in the queue.
#[tokio::test]
async fn stop_yields_buffered_messages() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..20)).await;
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    let first = receive(&mut consumer, 1).await;
    within(consumer.stop()).await.unwrap();
    within(consumer.stop()).await.unwrap();
    let mut here = first;
    loop {
        match within(consumer.recv(2)).await.unwrap() {
            more if more.is_empty() => break,
            more => here.extend(more),
        }
    }
    assert!(within(consumer.recv(2)).await.unwrap().is_empty(), "and again");
    assert_eq!(ids(&here), ["0", "1", "2", "3", "4"]);
    here.into_iter().for_each(|delivery| delivery.receipt.ack());
    within(consumer.close()).await;
    assert_eq!(drain(&transport, &queue, 15).await[0].id, "5");
}

/// Unacked deliveries of a dropped consumer are redelivered, acked ones are not.
#[tokio::test]
async fn dropped_consumer_requeues_unacked() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..6)).await;
    let mut consumer = transport.consume(&queue, 6).await.unwrap();
    let mut held = receive(&mut consumer, 4).await; // and two that were prefetched only
    held.drain(..2).for_each(|delivery| delivery.receipt.ack());
    drop(consumer);
    let mut next = transport.consume(&queue, 6).await.unwrap();
    let again = receive(&mut next, 4).await;
    assert_eq!(ids(&again), ["2", "3", "4", "5"]);
    assert!(again.iter().all(|delivery| delivery.is_redelivered()));
    held.into_iter().for_each(|stale| stale.receipt.ack());
    assert_no_delivery(&mut next).await;
    within(next.close()).await;
    assert_eq!(drain(&transport, &queue, 4).await.len(), 4, "the stale acks did nothing");
}

/// Consumers that start and stop do not disturb the others, nor their connection.
#[tokio::test]
async fn consumer_churn_is_independent() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..50)).await;
    let mut steady = transport.consume(&QueueRole::Suspect.of(&lane), 1).await.unwrap();
    for round in 0..50 {
        let mut consumer = transport.consume(&queue, 10).await.unwrap();
        let delivery = receive(&mut consumer, 1).await.remove(0);
        delivery.receipt.ack();
        match round % 4 {
            0 => drop(consumer),
            1 => within(consumer.close()).await,
            2 => {
                within(consumer.stop()).await.unwrap();
                drop(consumer);
            }
            _ => {
                let _ = timeout(Duration::ZERO, consumer.stop()).await; // cancelled half way
                drop(consumer);
            }
        }
        let _ = timeout(Duration::from_micros(round * 50), transport.consume(&queue, 10)).await;
    }
    assert_no_delivery(&mut steady).await; // its connection is still up
    store(&transport, numbered(&QueueRole::Suspect.of(&lane), 0..1)).await;
    assert_eq!(receive(&mut steady, 1).await.len(), 1);
}

/// A results queue has one active consumer at a time.
#[tokio::test]
async fn results_go_to_one_sink() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Results.of(&lane);
    let mut active = transport.consume(&queue, 2).await.unwrap();
    let standby = connect().await;
    let mut next = standby.consume(&queue, 2).await.unwrap();
    store(&transport, numbered(&queue, 0..4)).await;
    let held = receive(&mut active, 2).await;
    assert_no_delivery(&mut next).await;
    within(active.close()).await;
    let taken_over = receive(&mut next, 2).await;
    assert_eq!(ids(&taken_over), ids(&held));
    assert!(taken_over.iter().all(|delivery| delivery.is_redelivered()));
}
