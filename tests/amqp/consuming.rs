//! Prefetch, acks, and consumers that come and go.

use gristmill_shared::{QueueRole, Settlement};

use super::*;

#[tokio::test]
async fn a_slow_delivery_does_not_hold_up_the_others() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..500)).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    let slow = take(&mut consumer, 1).await.remove(0);
    let mut held = Vec::new();
    for _ in 1..500 {
        held.extend(take(&mut consumer, 1).await);
        if held.len() == 9 {
            held.reverse(); // the prefetch is used up: the last comes first
            held.drain(..8).for_each(|delivery| delivery.receipt.ack());
        }
    }
    held.into_iter().for_each(|delivery| delivery.receipt.ack());
    slow.receipt.ack();
    within(consumer.close()).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    nothing_comes(&mut consumer).await;
}

#[tokio::test]
async fn a_requeued_delivery_comes_again_and_its_acked_neighbours_do_not() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..5)).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    for (number, delivery) in take(&mut consumer, 5).await.into_iter().enumerate() {
        match if number == 2 { Settlement::Requeue } else { Settlement::Ack } {
            Settlement::Ack => delivery.receipt.ack(),
            Settlement::Requeue => delivery.receipt.requeue(),
        }
    }
    let again = take(&mut consumer, 1).await;
    assert_eq!((ids(&again), again[0].redelivered()), (vec!["2"], true));
    nothing_comes(&mut consumer).await;
}

#[tokio::test]
async fn a_consumer_that_stops_gives_out_what_is_here_and_the_rest_stays() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..20)).await;
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    let first = take(&mut consumer, 1).await;
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

#[tokio::test]
async fn what_a_dropped_consumer_held_comes_again_and_what_it_acked_does_not() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..6)).await;
    let mut consumer = transport.consume(&queue, 6).await.unwrap();
    let mut held = take(&mut consumer, 4).await; // and two that it never looked at
    held.drain(..2).for_each(|delivery| delivery.receipt.ack());
    drop(consumer);
    let mut next = transport.consume(&queue, 6).await.unwrap();
    let again = take(&mut next, 4).await;
    assert_eq!(ids(&again), ["2", "3", "4", "5"]);
    assert!(again.iter().all(|delivery| delivery.redelivered()));
    held.into_iter().for_each(|stale| stale.receipt.ack());
    nothing_comes(&mut next).await;
    within(next.close()).await;
    assert_eq!(drain(&transport, &queue, 4).await.len(), 4, "the stale acks did nothing");
}

#[tokio::test]
async fn consumers_that_come_and_go_do_not_disturb_one_another() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..50)).await;
    let mut steady = transport.consume(&QueueRole::Suspect.of(&lane), 1).await.unwrap();
    for round in 0..50 {
        let mut consumer = transport.consume(&queue, 10).await.unwrap();
        let delivery = take(&mut consumer, 1).await.remove(0);
        delivery.receipt.ack();
        match round % 4 {
            0 => drop(consumer),
            1 => within(consumer.close()).await,
            2 => {
                within(consumer.stop()).await.unwrap();
                drop(consumer);
            }
            _ => {
                let _ = timeout(Duration::ZERO, consumer.stop()).await; // given up half way
                drop(consumer);
            }
        }
        let _ = timeout(Duration::from_micros(round * 50), transport.consume(&queue, 10)).await;
    }
    nothing_comes(&mut steady).await; // and its connection stands
    store(&transport, numbered(&QueueRole::Suspect.of(&lane), 0..1)).await;
    assert_eq!(take(&mut steady, 1).await.len(), 1);
}

#[tokio::test]
async fn results_go_to_one_sink_at_a_time() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Results.of(&lane);
    let mut active = transport.consume(&queue, 2).await.unwrap();
    let standby = connect().await;
    let mut next = standby.consume(&queue, 2).await.unwrap();
    store(&transport, numbered(&queue, 0..4)).await;
    let held = take(&mut active, 2).await;
    nothing_comes(&mut next).await;
    within(active.close()).await;
    let taken_over = take(&mut next, 2).await;
    assert_eq!(ids(&taken_over), ids(&held));
    assert!(taken_over.iter().all(|delivery| delivery.redelivered()));
}
