//! Promises about publishing, and about the lane that is published to.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::{
    WAIT_BOUND,
    scene::{Scene, ack, answers, bounded, expect_quiet, ids, message, messages, new_lane, numbers, receive},
};
use crate::{
    Address, Headers, JobId, Message, Outgoing, Published, QueueRole, RetryDelay, Shards, TASKS_MAX_MESSAGES,
    Topic, Transport,
};

/// The largest body that the suite sends, in bytes.
const LARGEST_TRIED: usize = 64 << 20;
/// The tolerated difference between the broker's clock and the local one.
const CLOCK_SLACK: Duration = Duration::from_millis(50);

/// Every property and the body arrive as they were published, also empty ones.
pub(super) async fn properties_and_body_survive(scene: &Scene) {
    let full = Message {
        id: "job/7#2".into(),
        form: "gristmill.batch.v1".into(),
        job: Some(JobId::generate()),
        app: "host-1-2".into(),
        timestamp_ms: 1_700_000_000_000,
        content_type: "application/json".into(),
        content_encoding: "zstd".into(),
        headers: Headers {
            attempt: 3,
            loss: u32::MAX,
            released: 4,
            undecodable: Some("1733745901204 host-1-2".into()),
            delay_ms: u32::MAX,
            reason: Some(format!("größer als erlaubt: {}", "x".repeat(1_000))),
            origin: Some("gristmill.default.tasks".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        },
        body: (0..=255).collect(),
    };
    let bare = Message { id: "bare".into(), ..Message::default() };
    for message in [full, bare] {
        scene.publish(QueueRole::Tasks, vec![message.clone()]).await;
        let mut consumer = scene.consumer(QueueRole::Tasks, 1).await;
        let mut delivery = receive(&mut *consumer, 1).await.remove(0);
        assert_eq!(delivery.message, message);
        assert!(!delivery.is_redelivered(), "a first delivery says it was delivered before");
        delivery.message = Message::default();
        delivery.receipt.ack();
        bounded("closing a consumer", consumer.close()).await;
    }
}

/// Answers come in the order of the batch, whatever the result of each message. A message to a
/// queue that does not exist is unroutable and does not affect its neighbours.
pub(super) async fn answers_keep_batch_order(scene: &Scene) {
    let tasks = Address::Queue(scene.queue(QueueRole::Tasks));
    let missing = Address::Queue(QueueRole::Tasks.of(&new_lane()));
    let event = Address::Events(Topic::Job(scene.lane.clone(), JobId::generate()));
    let (stored, unroutable) = (Published::Confirmed, Published::Unroutable);
    let cases = [
        (missing.clone(), unroutable.clone()),
        (tasks.clone(), stored.clone()),
        (event, stored.clone()),
        (missing.clone(), unroutable.clone()),
        (missing, unroutable),
        (Address::Journal, stored.clone()),
        (tasks, stored),
    ];
    let batch = cases.iter().zip(0..).map(|((to, _), id)| Outgoing { to: to.clone(), message: message(id) });
    let answers = answers(&*scene.publisher, batch.collect()).await;
    assert_eq!(answers, cases.map(|(_, answer)| answer));
    let mut consumer = scene.consumer(QueueRole::Tasks, 10).await;
    assert_eq!(ids(&receive(&mut *consumer, 2).await), BTreeSet::from(["1".into(), "6".into()]));
}

/// A full queue rejects messages, keeps all stored ones and stores no rejected one. It accepts
/// messages again when one is taken out.
pub(super) async fn full_queue_rejects_then_accepts(scene: &Scene) {
    // A broker may overshoot by the messages in flight.
    let bound = u32::try_from(TASKS_MAX_MESSAGES * 3).expect("a small number");
    const BATCH_LENGTH: u32 = 100;
    let tasks = Address::Queue(scene.queue(QueueRole::Tasks));
    let mut stored = BTreeSet::new();
    let mut next = 0;
    let full = loop {
        assert!(next < bound, "{next} messages were stored in a queue that takes {TASKS_MAX_MESSAGES}");
        let batch = messages(next..next + BATCH_LENGTH);
        next += BATCH_LENGTH;
        let sent: Vec<_> = batch.iter().map(|message| message.id.clone()).collect();
        let batch = batch.into_iter().map(|message| Outgoing { to: tasks.clone(), message }).collect();
        let answers = answers(&*scene.publisher, batch).await;
        let rejected = answers.contains(&Published::Nacked);
        for (id, answer) in sent.into_iter().zip(answers) {
            match answer {
                Published::Confirmed => drop(stored.insert(id)),
                Published::Nacked => {}
                other => panic!("a full queue answers {other:?}"),
            }
        }
        if rejected {
            break stored.len() as u64;
        }
    };
    assert!(full >= TASKS_MAX_MESSAGES, "the queue was full with {full} of {TASKS_MAX_MESSAGES}");

    let mut consumer = scene.consumer(QueueRole::Tasks, 200).await;
    let mut taken = BTreeSet::new();
    while taken.len() < stored.len() {
        let deliveries = receive(&mut *consumer, 1).await;
        taken.extend(ids(&deliveries));
        ack(deliveries);
    }
    assert!(taken == stored, "the delivered messages are not the stored ones");

    let start = Instant::now();
    loop {
        let again = Outgoing { to: tasks.clone(), message: message("again") };
        match answers(&*scene.publisher, vec![again]).await.as_slice() {
            [Published::Confirmed] => break,
            [Published::Nacked] if start.elapsed() < WAIT_BOUND => sleep(CLOCK_SLACK).await,
            other => panic!("an emptied queue still answers {other:?}"),
        }
    }
    assert_eq!(receive(&mut *consumer, 1).await[0].message.id, "again", "a refused message was stored");
}

/// A body of `max_message` bytes arrives whole. One more byte is refused, and the connection stays
/// open.
pub(super) async fn body_size_limit_is_exact(scene: &Scene) {
    let max = scene.transport.capabilities().max_message;
    if max > LARGEST_TRIED {
        eprintln!("skipped: bodies of {max} bytes, since more than {LARGEST_TRIED} are not tried");
        return;
    }
    let to = Address::Queue(scene.queue(QueueRole::Requeued));
    let of = |size| Outgoing {
        to: to.clone(),
        message: Message { body: Bytes::from(vec![7; size]), ..message(size) },
    };
    let answers = answers(&*scene.publisher, vec![of(max + 1), of(max)]).await;
    assert!(
        matches!(&*answers, [Published::Invalid(why), Published::Confirmed] if !why.is_empty()),
        "{answers:?}"
    );
    let mut consumer = scene.consumer(QueueRole::Requeued, 10).await;
    let whole = receive(&mut *consumer, 1).await.remove(0);
    assert!(whole.message.body == vec![7; max], "the largest body did not arrive whole");
    whole.receipt.ack();
    expect_quiet(&mut *consumer, "nothing was sent but the largest body").await;
}

/// Several calls of `publish` may be in flight, and each returns the answers to its own messages.
pub(super) async fn concurrent_publishes_get_own_answers(scene: &Scene) {
    const CALL_COUNT: u32 = 20;
    const CALL_MESSAGES: u32 = 50;
    let (missing, again) = (QueueRole::Requeued.of(&new_lane()), scene.queue(QueueRole::Requeued));
    let other = scene.second_connection().await;
    let other = bounded("a publisher", other.publisher()).await.expect("a publisher");
    let calls = (0..CALL_COUNT).map(|call| {
        // One message of each call has no queue to go to, in another place each time.
        let to = |place| if place == call { missing.clone() } else { again.clone() };
        let publisher = if call % 4 == 0 { &other } else { &scene.publisher };
        let outgoing = |place| Outgoing {
            to: Address::Queue(to(place)),
            message: message(call * CALL_MESSAGES + place),
        };
        let batch = (0..CALL_MESSAGES).map(outgoing).collect();
        async move {
            let expected: Vec<_> = (0..CALL_MESSAGES)
                .map(|place| if place == call { Published::Unroutable } else { Published::Confirmed })
                .collect();
            assert_eq!(answers(&**publisher, batch).await, expected, "the answers to call {call}");
        }
    });
    join_all(calls).await;
    let mut consumer = scene.consumer(QueueRole::Requeued, 2_000).await;
    let all = receive(&mut *consumer, (CALL_COUNT * (CALL_MESSAGES - 1)) as usize).await;
    let mut expected = numbers(0..CALL_COUNT * CALL_MESSAGES);
    (0..CALL_COUNT).for_each(|call| assert!(expected.remove(&(call * CALL_MESSAGES + call).to_string())));
    assert!(ids(&all) == expected, "the delivered messages are not the stored ones");
}

/// Opening a lane again, also on another connection, keeps the messages in its queues.
pub(super) async fn reopening_lane_keeps_messages(scene: &Scene) {
    scene.publish(QueueRole::Tasks, messages(0..3)).await;
    bounded("open_lane", scene.transport.open_lane(&scene.lane)).await.expect("the same lane again");
    scene.second_connection().await;
    let mut consumer = scene.consumer(QueueRole::Tasks, 10).await;
    assert_eq!(ids(&receive(&mut *consumer, 3).await), numbers(0..3));
}

/// A lane has one tasks queue until a client opens more. Every client then finds the same number.
/// Each shard is a queue of its own with the bounds of the first, and keeps its messages when it is
/// opened again.
pub(super) async fn shards_are_created_once(scene: &Scene) {
    let open = async |transport: &dyn Transport, at_least| {
        let at_least = Shards::new(at_least).expect("a number of shards");
        bounded("open_shards", transport.open_shards(&scene.lane, at_least)).await.expect("shards").get()
    };
    let other = scene.second_connection().await;
    let three = Shards::new(3).expect("a number of shards");
    let missing = Outgoing { to: Address::Queue(scene.queue(three.last())), message: message("early") };
    assert_eq!(open(&*other, 1).await, 1, "a new lane has one shard");
    assert_eq!(answers(&*scene.publisher, vec![missing]).await, [Published::Unroutable]);
    assert_eq!(open(&*other, 3).await, 3);
    for (at, shard) in (0..).zip(three.queues()) {
        scene.publish(shard, messages(at..at + 1)).await;
    }
    for at_least in [1, 2, 3] {
        assert_eq!(open(&*scene.transport, at_least).await, 3, "there are three shards");
    }
    for (at, shard) in (0..).zip(three.queues()) {
        let mut consumer = scene.consumer(shard, 10).await;
        assert_eq!(ids(&receive(&mut *consumer, 1).await), numbers(at..at + 1), "the messages in {shard:?}");
    }
}

/// A message in a retry queue arrives unchanged in `again` when its delay has passed, and not
/// before.
pub(super) async fn retry_arrives_after_its_delay(scene: &Scene) {
    let mut again = scene.consumer(QueueRole::Requeued, 10).await;
    let delay = RetryDelay::Second.duration();
    let start = Instant::now();
    // The check does not wait for the longer delay: this message must not come with the other.
    scene.publish(QueueRole::Retry(RetryDelay::TenSeconds), vec![message("later")]).await;
    let sent = Message { headers: Headers { attempt: 1, ..Headers::default() }, ..message("ripe") };
    scene.publish(QueueRole::Retry(RetryDelay::Second), vec![sent.clone()]).await;
    let ripe = receive(&mut *again, 1).await.remove(0);
    let waited = start.elapsed();
    assert_eq!(ripe.message, sent);
    assert!(waited + CLOCK_SLACK >= delay, "it came after {waited:?} instead of {delay:?}");
    assert!(waited < delay * 5, "it came after {waited:?} instead of {delay:?}");
    ripe.receipt.ack();
    expect_quiet(&mut *again, "no other retry is due").await;
}

/// The transport has a name that is safe to log.
pub(super) async fn name_hides_password(scene: &Scene) {
    let name = scene.transport.to_string();
    assert!(!name.is_empty(), "the transport has no name");
    let user = name.split_once("://").map_or(&*name, |(_, rest)| rest).split_once('@').map(|(user, _)| user);
    assert!(user.is_none_or(|user| !user.contains(':')), "a password is in the transport's name");
}
