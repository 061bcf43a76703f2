//! Promises about unsettled and requeued messages.

use std::collections::BTreeSet;

use super::scene::{Scene, ack, bounded, expect_quiet, ids, message, messages, numbers, receive};
use crate::{Consumer, QueueRole, Redelivery};

/// Dropping a receipt settles nothing: its delivery stays unsettled, and is delivered again when
/// its consumer closes.
pub(super) async fn dropped_receipt_settles_nothing(scene: &Scene) {
    if uses_leases(scene) {
        return;
    }
    scene.publish(QueueRole::Tasks, messages(0..3)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 2).await;
    drop(receive(&mut *consumer, 2).await);
    expect_quiet(&mut *consumer, "both are unsettled").await;
    bounded("closing a consumer", consumer.close()).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 3).await;
    assert_eq!(ids(&receive(&mut *consumer, 3).await), numbers(0..3));
}

/// Extending a receipt settles nothing, any number of times. The receipt can still be settled.
pub(super) async fn extended_receipt_can_be_settled(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..2)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 1).await;
    let mut held = receive(&mut *consumer, 1).await;
    held.iter().for_each(|delivery| (0..3).for_each(|_| delivery.receipt.extend()));
    expect_quiet(&mut *consumer, "the one that is allowed is renewed, not settled").await;
    ack(held);
    held = receive(&mut *consumer, 1).await;
    assert_eq!(ids(&held), numbers(1..2));
    ack(held);
    bounded("closing a consumer", consumer.close()).await;
    scene.expect_empty(QueueRole::Tasks).await;
}

/// Dropping a consumer requeues its unsettled messages. Only those are marked as redelivered.
pub(super) async fn dropped_consumer_requeues(scene: &Scene) {
    if uses_leases(scene) {
        return;
    }
    let (consumer, held) = receive_five_of_ten(scene).await;
    drop(consumer);
    expect_redelivered(scene, held).await;
}

/// Closing a consumer requeues its unsettled messages. Only those are marked as redelivered.
pub(super) async fn closed_consumer_requeues(scene: &Scene) {
    if uses_leases(scene) {
        return;
    }
    let (consumer, held) = receive_five_of_ten(scene).await;
    bounded("closing a consumer", consumer.close()).await;
    expect_redelivered(scene, held).await;
}

async fn receive_five_of_ten(scene: &Scene) -> (Box<dyn Consumer>, BTreeSet<String>) {
    scene.publish(QueueRole::Tasks, messages(0..10)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 5).await;
    let held = ids(&receive(&mut *consumer, 5).await);
    (consumer, held)
}

async fn expect_redelivered(scene: &Scene, held: BTreeSet<String>) {
    let mut next = scene.consumer(QueueRole::Tasks, 10).await;
    let all = receive(&mut *next, 10).await;
    assert_eq!(ids(&all), numbers(0..10));
    let again = ids(all.iter().filter(|delivery| delivery.is_redelivered()));
    assert_eq!(again, held, "the deliveries that say that they came before");
}

/// A delivery carries the number of earlier, unsettled deliveries of its message.
pub(super) async fn deliveries_are_counted(scene: &Scene) {
    if uses_leases(scene) {
        return;
    }
    scene.publish(QueueRole::Suspect, messages(0..1)).await;
    for before in 0..4 {
        let mut consumer = scene.consumer(QueueRole::Suspect, 1).await;
        let delivery = receive(&mut *consumer, 1).await.remove(0);
        assert_eq!(delivery.deliveries_before, before, "how often it came before");
        bounded("closing a consumer", consumer.close()).await;
    }
}

/// A requeued message is delivered again, to any consumer, and is marked as redelivered. No other
/// message is.
pub(super) async fn requeued_message_is_redelivered(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..3)).await;
    let mut first = scene.consumer(QueueRole::Tasks, 3).await;
    for delivery in receive(&mut *first, 3).await {
        if delivery.message.id == "1" { delivery.receipt.requeue() } else { delivery.receipt.ack() }
    }
    let again = receive(&mut *first, 1).await.remove(0);
    assert_eq!(again.message, message(1));
    assert!(again.is_redelivered(), "a requeued message says that it never came before");
    bounded("stop", first.stop()).await.expect("a stop");
    again.receipt.requeue();
    let mut second = scene.consumer(QueueRole::Tasks, 3).await;
    let again = receive(&mut *second, 1).await;
    assert_eq!(again[0].message.id, "1");
    assert!(again[0].is_redelivered(), "a requeued message says that it never came before");
    ack(again);
    expect_quiet(&mut *second, "everything was settled").await;
}

/// Settling a receipt of a closed consumer does nothing: the message belongs to another consumer.
pub(super) async fn stale_receipt_does_nothing(scene: &Scene) {
    if uses_leases(scene) {
        return;
    }
    scene.publish(QueueRole::Tasks, messages(0..2)).await;
    let mut first = scene.consumer(QueueRole::Tasks, 2).await;
    let stale = receive(&mut *first, 2).await;
    bounded("closing a consumer", first.close()).await;

    let mut second = scene.consumer(QueueRole::Tasks, 10).await;
    let held = receive(&mut *second, 2).await;
    let mut stale = stale.into_iter().map(|delivery| delivery.receipt);
    stale.next().expect("two").ack();
    stale.next().expect("two").requeue();
    expect_quiet(&mut *second, "both are held by this consumer").await;

    drop(held);
    bounded("closing a consumer", second.close()).await;
    let mut third = scene.consumer(QueueRole::Tasks, 10).await;
    assert_eq!(ids(&receive(&mut *third, 2).await), numbers(0..2));
}

/// True if redelivery is decided by leases; a closed consumer then requeues nothing.
fn uses_leases(scene: &Scene) -> bool {
    match scene.transport.capabilities().redelivery {
        Redelivery::OnDisconnect => false,
        Redelivery::OnLease(lease) => {
            eprintln!("skipped: giving back when a consumer goes, since leases of {lease:?} decide");
            true
        }
    }
}
