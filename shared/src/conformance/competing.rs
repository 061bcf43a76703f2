//! Promises to several consumers of one queue.

use super::scene::{Scene, ack, bounded, consumer, expect_quiet, ids, messages, numbers, receive};
use crate::QueueRole;

/// Consumers of one queue share its messages: each receives some, and each message goes to one.
pub(super) async fn each_message_goes_to_one_consumer(scene: &Scene) {
    let other = scene.second_connection().await;
    let mut one = scene.consumer(QueueRole::Tasks, 10).await;
    let mut two = consumer(&*other, &scene.queue(QueueRole::Tasks), 10).await;
    scene.publish(QueueRole::Tasks, messages(0..30)).await;
    // Neither settles anything, so the prefetch keeps each from taking all.
    let mut all = receive(&mut *one, 10).await;
    all.extend(receive(&mut *two, 10).await);
    let mut seen = ids(&all);
    ack(all);
    while seen.len() < 30 {
        let some = tokio::select! {
            some = receive(&mut *one, 1) => some,
            some = receive(&mut *two, 1) => some,
        };
        assert!(seen.is_disjoint(&ids(&some)), "a message went to both");
        seen.extend(ids(&some));
        ack(some);
    }
    assert_eq!(seen, numbers(0..30));
    expect_quiet(&mut *one, "everything was settled").await;
    expect_quiet(&mut *two, "everything was settled").await;
}

/// Only the first consumer of a queue with a single active consumer receives messages. When it
/// closes, the next one receives the unsettled messages and the rest.
pub(super) async fn single_active_consumer_hands_over(scene: &Scene) {
    let other = scene.second_connection().await;
    let mut active = scene.consumer(QueueRole::Results, 5).await;
    let mut next = consumer(&*other, &scene.queue(QueueRole::Results), 20).await;
    scene.publish(QueueRole::Results, messages(0..10)).await;
    let mut first = receive(&mut *active, 5).await;
    expect_quiet(&mut *next, "another consumer is active").await;
    let done = first.split_off(3);
    let seen = ids(&done);
    ack(done);
    first.extend(receive(&mut *active, 2).await); // the acks have arrived
    bounded("closing a consumer", active.close()).await;
    let rest = receive(&mut *next, 8).await;
    assert!(seen.is_disjoint(&ids(&rest)), "a settled message came again");
    assert_eq!(&seen | &ids(&rest), numbers(0..10));
    expect_quiet(&mut *next, "there were only ten").await;
}
