//! Promises to several consumers of one queue.

use super::scene::{Scene, ack, bounded, consumer, expect_quiet, ids, messages, numbers, receive};
use crate::QueueRole;

/// Consumers of one queue share what it holds: each has its part, and each message goes to one of them.
pub(super) async fn consumers_share_and_each_message_goes_to_one(scene: &Scene) {
    let other = scene.another().await;
    let mut one = scene.consumer(QueueRole::Tasks, 10).await;
    let mut two = consumer(&*other, &scene.queue(QueueRole::Tasks), 10).await;
    scene.publish(QueueRole::Tasks, messages(0..30)).await;
    // Neither settles anything, so none of them can have it all.
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

/// Of the consumers of a queue with a single active consumer only the first gets messages; when it goes, the next
/// gets what was not settled, and the rest.
pub(super) async fn one_consumer_of_results_is_active_and_the_next_takes_over(scene: &Scene) {
    let other = scene.another().await;
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
    assert!(seen.is_disjoint(&ids(&rest)), "what was settled came again");
    assert_eq!(&seen | &ids(&rest), numbers(0..10));
    expect_quiet(&mut *next, "there were only ten").await;
}
