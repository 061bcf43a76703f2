//! A lane's queues, and what the broker does with them by itself.

use std::time::Instant;

use futures::future::join_all;
use gristmill::testing::LocalBroker;
use gristmill_shared::{JournalEntry, QueueRole, RetryDelay, Shards, TransportError};
use lapin::{
    options::{BasicGetOptions, BasicRejectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::*;

#[tokio::test]
async fn a_queue_that_was_deleted_is_made_anew_by_whoever_publishes_to_it() {
    let (transport, lane) = open().await;
    let there = QueueRole::Again.of(&lane);
    let by_hand = ByHand::open().await;
    for role in [QueueRole::Suspect, QueueRole::Results, QueueRole::Retry(RetryDelay::Second)] {
        let gone = role.of(&lane);
        by_hand.delete(&gone).await;
        let batch = (0..99).map(|number| to(if number % 3 == 0 { &gone } else { &there }, message(number)));
        store(&transport, batch.collect()).await;
        let ripens = matches!(role, QueueRole::Retry(_));
        let (count, others) = if ripens { (99, &there) } else { (66, &gone) };
        assert_eq!(drain(&transport, &there, count).await.len(), count, "{gone}");
        if !ripens {
            assert_eq!(drain(&transport, others, 33).await.len(), 33, "{gone}");
        }
    }
}

#[tokio::test]
async fn a_retry_ripens_when_its_time_has_come() {
    let (transport, lane) = open().await;
    let retry = QueueRole::Retry(RetryDelay::Second).of(&lane);
    let again = QueueRole::Again.of(&lane);
    let mut consumer = transport.consume(&again, 10).await.unwrap();
    let start = Instant::now();
    let mut sent = message("late");
    sent.headers.attempt = 1;
    store(&transport, vec![to(&retry, sent.clone())]).await;
    let ripe = take(&mut consumer, 1).await.remove(0);
    let waited = start.elapsed();
    assert!((950..5_000).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(ripe.message, sent, "and nothing of what the broker notes about it shows");
    let error = transport.consume(&retry, 1).await.unwrap_err();
    assert!(matches!(error, TransportError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn what_the_broker_gives_up_is_in_the_dead_queue_with_its_reason_and_origin() {
    let (transport, lane) = open().await;
    let (queue, dead) = (QueueRole::Tasks.of(&lane), QueueRole::Dead.of(&lane));
    store(&transport, vec![to(&queue, message("hopeless"))]).await;
    let by_hand = ByHand::open().await;
    let got = by_hand.channel.basic_get(queue.to_string().into(), BasicGetOptions::default()).await.unwrap();
    got.unwrap().delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    let found = drain(&transport, &dead, 1).await.remove(0);
    assert_eq!((found.id.as_str(), found.headers.origin), ("hopeless", Some(queue.to_string())));
    assert!(found.headers.reason.unwrap().contains("rejected"));
}

#[tokio::test]
async fn a_queue_with_other_settings_is_told_with_both_sides() {
    let transport = connect().await;
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    let queue = QueueRole::Dead.of(&lane);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(7));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let by_hand = ByHand::open().await;
    by_hand.channel.queue_declare(queue.to_string().into(), options, arguments).await.unwrap();
    let error = within(transport.open_lane(&lane)).await.unwrap_err();
    let TransportError::Mismatch { what, difference, .. } = &error else { panic!("{error}") };
    assert!(what.contains(&queue.to_string()), "{error}");
    assert_eq!(difference, "x-delivery-limit is 7 there and would be 1000000 here");
    by_hand.delete(&queue).await;
    within(transport.open_lane(&lane)).await.unwrap(); // the refusal cost no connection
}

#[tokio::test]
async fn several_may_open_a_lane_at_once() {
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    let opened = join_all((0..4).map(|_| async {
        let transport = connect().await;
        within(transport.open_lane(&lane)).await
    }))
    .await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
}

#[tokio::test]
async fn a_shard_that_is_deleted_is_made_anew() {
    let (transport, lane) = open().await;
    let three = Shards::new(3).unwrap();
    within(transport.open_shards(&lane, three)).await.unwrap();
    let (finder, by_hand) = (connect().await, ByHand::open().await);
    within(finder.open_lane(&lane)).await.unwrap();
    assert_eq!(within(finder.open_shards(&lane, Shards::ONE)).await.unwrap(), three);
    for transport in [&transport, &finder] {
        let shard = three.queues().nth(1).unwrap().of(&lane);
        by_hand.delete(&shard).await;
        store(transport, numbered(&shard, 0..3)).await;
        assert_eq!(drain(transport, &shard, 3).await.len(), 3);
    }
}

/// RabbitMQ knows a new stream by name some time before it can be read; who reads it then loses the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_broker_bears_a_fleet_that_starts_all_at_once() {
    let broker = LocalBroker::start().unwrap();
    let lane = Lane::default();
    let starts = (0..12).map(|_| async {
        let transport = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
        transport.open_lane(&lane).await.unwrap();
        let mut journal = transport.journal().await.unwrap();
        assert!(matches!(journal.next().await.unwrap(), JournalEntry::CaughtUp));
    });
    join_all(starts).await;
}
