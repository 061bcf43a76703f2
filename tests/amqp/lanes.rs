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

/// Publishing to a deleted queue declares it again, and loses no message of the batch.
#[tokio::test]
async fn publish_recreates_a_deleted_queue() {
    let (transport, lane) = open().await;
    let there = QueueRole::Requeued.of(&lane);
    let raw_client = RawClient::open().await;
    for role in [QueueRole::Suspect, QueueRole::Results, QueueRole::Retry(RetryDelay::Second)] {
        let gone = role.of(&lane);
        raw_client.delete(&gone).await;
        let batch =
            (0..99).map(|number| outgoing(if number % 3 == 0 { &gone } else { &there }, message(number)));
        store(&transport, batch.collect()).await;
        let ripens = matches!(role, QueueRole::Retry(_));
        let (count, others) = if ripens { (99, &there) } else { (66, &gone) };
        assert_eq!(drain(&transport, &there, count).await.len(), count, "{gone}");
        if !ripens {
            assert_eq!(drain(&transport, others, 33).await.len(), 33, "{gone}");
        }
    }
}

/// A message in a retry queue returns to the lane after its delay.
#[tokio::test]
async fn retry_returns_after_its_delay() {
    let (transport, lane) = open().await;
    let retry = QueueRole::Retry(RetryDelay::Second).of(&lane);
    let again = QueueRole::Requeued.of(&lane);
    let mut consumer = transport.consume(&again, 10).await.unwrap();
    let start = Instant::now();
    let mut sent = message("late");
    sent.headers.attempt = 1;
    store(&transport, vec![outgoing(&retry, sent.clone())]).await;
    let ripe = receive(&mut consumer, 1).await.remove(0);
    let waited = start.elapsed();
    assert!((950..5_000).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(ripe.message, sent, "the broker's own headers do not show");
    let error = transport.consume(&retry, 1).await.unwrap_err();
    assert!(matches!(error, TransportError::Invalid(_)), "{error}");
}

/// A message that the broker dead-letters has its reason and origin in the dead queue.
#[tokio::test]
async fn dead_letter_has_reason_and_origin() {
    let (transport, lane) = open().await;
    let (queue, dead) = (QueueRole::Tasks.of(&lane), QueueRole::Dead.of(&lane));
    store(&transport, vec![outgoing(&queue, message("hopeless"))]).await;
    let raw_client = RawClient::open().await;
    let got =
        raw_client.channel.basic_get(queue.to_string().into(), BasicGetOptions::default()).await.unwrap();
    got.unwrap().delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    let found = drain(&transport, &dead, 1).await.remove(0);
    assert_eq!((found.id.as_str(), found.headers.origin), ("hopeless", Some(queue.to_string())));
    assert!(found.headers.reason.unwrap().contains("rejected"));
}

/// A queue with other arguments is reported with both values.
#[tokio::test]
async fn queue_mismatch_names_both_sides() {
    let transport = connect().await;
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    let queue = QueueRole::Dead.of(&lane);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(7));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let raw_client = RawClient::open().await;
    raw_client.channel.queue_declare(queue.to_string().into(), options, arguments).await.unwrap();
    let error = within(transport.open_lane(&lane)).await.unwrap_err();
    let TransportError::Mismatch { what, difference, .. } = &error else { panic!("{error}") };
    assert!(what.contains(&queue.to_string()), "{error}");
    assert_eq!(difference, "x-delivery-limit is 7 there and would be 1000000 here");
    raw_client.delete(&queue).await;
    within(transport.open_lane(&lane)).await.unwrap(); // the refusal cost no connection
}

/// Several transports may open a lane at the same time.
#[tokio::test]
async fn lane_opens_concurrently() {
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    let opened = join_all((0..4).map(|_| async {
        let transport = connect().await;
        within(transport.open_lane(&lane)).await
    }))
    .await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
}

/// Publishing to a deleted shard declares it again.
#[tokio::test]
async fn deleted_shard_is_recreated() {
    let (transport, lane) = open().await;
    let three = Shards::new(3).unwrap();
    within(transport.open_shards(&lane, three)).await.unwrap();
    let (finder, raw_client) = (connect().await, RawClient::open().await);
    within(finder.open_lane(&lane)).await.unwrap();
    assert_eq!(within(finder.open_shards(&lane, Shards::ONE)).await.unwrap(), three);
    for transport in [&transport, &finder] {
        let shard = three.queues().nth(1).unwrap().of(&lane);
        raw_client.delete(&shard).await;
        store(transport, numbered(&shard, 0..3)).await;
        assert_eq!(drain(transport, &shard, 3).await.len(), 3);
    }
}

/// RabbitMQ knows a new stream by name some time before it can be read. A reader that comes too
/// early loses its connection.
#[tokio::test(flavor = "multi_thread")]
async fn new_broker_bears_a_whole_fleet() {
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
