//! Promises to one consumer.

use std::{collections::BTreeSet, time::Duration};

use futures::FutureExt;
use tokio::{
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    QUIET_PERIOD, WAIT_BOUND,
    scene::{Scene, ack, answers, bounded, expect_quiet, ids, message, messages, new_lane, numbers, receive},
};
use crate::{Address, Outgoing, Published, QueueRole};

/// A waiting consumer receives a message that is published later.
pub(super) async fn waiting_consumer_wakes(scene: &Scene) {
    let mut consumer = scene.consumer(QueueRole::Tasks, 10).await;
    for id in 0..3 {
        let publish = async {
            sleep(QUIET_PERIOD).await; // so that the consumer waits
            scene.publish(QueueRole::Tasks, vec![message(id)]).await;
        };
        let (got, ()) = tokio::join!(receive(&mut *consumer, 1), publish);
        assert_eq!(ids(&got), numbers(id..id + 1));
        ack(got);
    }
}

/// `recv` returns the available messages, at most `max` of them.
pub(super) async fn recv_respects_max(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..10)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 10).await;
    let mut all = receive(&mut *consumer, 1).await;
    for _ in 0..3 {
        all.extend(receive(&mut *consumer, 3).await);
    }
    assert_eq!(ids(&all), numbers(0..10));
}

/// At most `prefetch` deliveries are unsettled at any time. Each settlement makes room for one.
pub(super) async fn prefetch_bounds_unsettled(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..10)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 3).await;
    let mut held = receive(&mut *consumer, 3).await;
    expect_quiet(&mut *consumer, "three of three are unsettled").await;
    held.remove(1).receipt.ack();
    held.extend(receive(&mut *consumer, 1).await);
    expect_quiet(&mut *consumer, "three of three are unsettled again").await;
}

/// A delivery that is settled late does not block the others.
pub(super) async fn out_of_order_acks_never_stall(scene: &Scene) {
    const MESSAGE_COUNT: u32 = 200;
    scene.publish(QueueRole::Tasks, messages(0..MESSAGE_COUNT)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 10).await;
    let slow = receive(&mut *consumer, 1).await;
    let mut seen = ids(&slow);
    while seen.len() < MESSAGE_COUNT as usize {
        let mut some = bounded("a delivery", consumer.recv(10)).await.expect("a delivery");
        some.reverse();
        for delivery in some {
            assert!(seen.insert(delivery.message.id), "a message came twice");
            delivery.receipt.ack();
        }
    }
    ack(slow);
    bounded("closing a consumer", consumer.close()).await;
    scene.expect_empty(QueueRole::Tasks).await;
}

/// An acked message is never delivered again, whatever the order of the acks.
pub(super) async fn ack_is_final(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..20)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 20).await;
    let (even, odd): (Vec<_>, Vec<_>) =
        receive(&mut *consumer, 20).await.into_iter().enumerate().partition(|(place, _)| place % 2 == 0);
    odd.into_iter().chain(even).for_each(|(_, delivery)| delivery.receipt.ack());
    bounded("closing a consumer", consumer.close()).await;
    scene.expect_empty(QueueRole::Tasks).await;
}

/// A `recv` that is dropped before it returns loses no message.
pub(super) async fn recv_is_cancel_safe(scene: &Scene) {
    const MESSAGE_COUNT: u32 = 300;
    let publish = async {
        for id in 0..MESSAGE_COUNT {
            let to = Address::Queue(scene.queue(QueueRole::Tasks));
            assert_eq!(
                answers(&*scene.publisher, vec![Outgoing { to, message: message(id) }]).await,
                [Published::Confirmed]
            );
            yield_now().await;
        }
    };
    let receive = async {
        let mut consumer = scene.consumer(QueueRole::Tasks, 5).await;
        let (mut seen, mut dropped, start) = (BTreeSet::new(), 0, Instant::now());
        for turn in 0_u64.. {
            if seen.len() == MESSAGE_COUNT as usize {
                break;
            }
            assert!(
                start.elapsed() < WAIT_BOUND,
                "{} of {MESSAGE_COUNT} came, with {dropped} calls dropped",
                seen.len()
            );
            let received = match turn % 4 {
                0 => timeout(Duration::from_millis(1), consumer.recv(3)).await.ok(),
                1 => timeout(Duration::from_micros(50), consumer.recv(3)).await.ok(),
                _ => consumer.recv(3).now_or_never(),
            };
            let Some(received) = received else {
                dropped += 1;
                yield_now().await;
                continue;
            };
            for delivery in received.expect("a delivery") {
                assert!(seen.insert(delivery.message.id), "a message came twice");
                delivery.receipt.ack();
            }
        }
        assert!(dropped > 0, "no call was dropped, so the check proves nothing");
    };
    tokio::join!(publish, receive);
}

/// Consuming a queue that does not exist is an error, and affects no other consumer.
pub(super) async fn missing_queue_is_an_error(scene: &Scene) {
    let mut consumer = scene.consumer(QueueRole::Tasks, 10).await;
    let missing = QueueRole::Tasks.of(&new_lane());
    let refused = bounded("consume", scene.transport.consume(&missing, 1)).await;
    assert!(refused.is_err(), "consumes a queue that does not exist");
    scene.publish(QueueRole::Tasks, messages(0..1)).await;
    ack(receive(&mut *consumer, 1).await);
}
