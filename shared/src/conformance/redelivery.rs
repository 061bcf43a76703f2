//! Promises about what is not settled.

use std::collections::BTreeSet;

use super::scene::{Scene, ack, bounded, expect_quiet, ids, message, messages, numbers, receive};
use crate::{Consumer, QueueRole, Redelivery};

/// A receipt that is dropped settles nothing: its delivery counts as unsettled, and comes again after its consumer.
pub(super) async fn a_dropped_receipt_settles_nothing(scene: &Scene) {
    if leases(scene) {
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

/// Renewing a receipt settles nothing, however often, and takes nothing from the right to settle.
pub(super) async fn an_extended_receipt_can_still_be_settled(scene: &Scene) {
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

/// When a consumer is dropped, what it did not settle comes again and says so; what it never had says nothing.
pub(super) async fn dropping_a_consumer_gives_back(scene: &Scene) {
    if leases(scene) {
        return;
    }
    let (consumer, held) = five_of_ten(scene).await;
    drop(consumer);
    expect_given_back(scene, held).await;
}

/// When a consumer is closed, what it did not settle comes again and says so; what it never had says nothing.
pub(super) async fn closing_a_consumer_gives_back(scene: &Scene) {
    if leases(scene) {
        return;
    }
    let (consumer, held) = five_of_ten(scene).await;
    bounded("closing a consumer", consumer.close()).await;
    expect_given_back(scene, held).await;
}

async fn five_of_ten(scene: &Scene) -> (Box<dyn Consumer>, BTreeSet<String>) {
    scene.publish(QueueRole::Tasks, messages(0..10)).await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 5).await;
    let held = ids(&receive(&mut *consumer, 5).await);
    (consumer, held)
}

async fn expect_given_back(scene: &Scene, held: BTreeSet<String>) {
    let mut next = scene.consumer(QueueRole::Tasks, 10).await;
    let all = receive(&mut *next, 10).await;
    assert_eq!(ids(&all), numbers(0..10));
    let again = ids(all.iter().filter(|delivery| delivery.redelivered()));
    assert_eq!(again, held, "the deliveries that say that they came before");
}

/// A delivery says how often its message was delivered before and not settled.
pub(super) async fn deliveries_are_counted(scene: &Scene) {
    if leases(scene) {
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

/// A requeued message comes again, to anybody, and says so. Nothing else does.
pub(super) async fn a_requeued_message_comes_again(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..3)).await;
    let mut first = scene.consumer(QueueRole::Tasks, 3).await;
    for delivery in receive(&mut *first, 3).await {
        if delivery.message.id == "1" { delivery.receipt.requeue() } else { delivery.receipt.ack() }
    }
    let again = receive(&mut *first, 1).await.remove(0);
    assert_eq!(again.message, message(1));
    assert!(again.redelivered(), "a requeued message says that it never came before");
    bounded("stop", first.stop()).await.expect("a stop");
    again.receipt.requeue();
    let mut second = scene.consumer(QueueRole::Tasks, 3).await;
    let again = receive(&mut *second, 1).await;
    assert_eq!(again[0].message.id, "1");
    assert!(again[0].redelivered(), "a requeued message says that it never came before");
    ack(again);
    expect_quiet(&mut *second, "everything was settled").await;
}

/// A receipt that is settled after its consumer went does nothing: the message is somebody else's.
pub(super) async fn a_receipt_does_nothing_after_its_consumer(scene: &Scene) {
    if leases(scene) {
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

/// Where a backend works by leases, nothing comes again when a consumer goes.
fn leases(scene: &Scene) -> bool {
    match scene.transport.capabilities().redelivery {
        Redelivery::OnDisconnect => false,
        Redelivery::OnLease(lease) => {
            eprintln!("skipped: giving back when a consumer goes, since leases of {lease:?} decide");
            true
        }
    }
}
