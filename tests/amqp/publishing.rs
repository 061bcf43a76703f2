//! Publishing: properties, order, rejections and the window.

use std::collections::BTreeSet;

use futures::future::join_all;
use gristmill_shared::{Headers, QueueRole};
use lapin::types::{AMQPValue, FieldTable};

use super::*;

/// All properties of a message pass the broker unchanged.
#[tokio::test]
async fn all_properties_survive() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Results.of(&lane);
    let sent = Message {
        id: "id".into(),
        form: "gristmill.results.v1".into(),
        job: Some(JobId::generate()),
        app: "worker-1".into(),
        timestamp_ms: 1_700_000_000_000,
        content_type: "application/json".into(),
        content_encoding: "zstd".into(),
        headers: Headers {
            attempt: u32::MAX,
            loss: 2,
            released: 4,
            undecodable: Some("1733745901204 worker-1".into()),
            delay_ms: 7,
            reason: Some("\u{e4}\n".into()),
            origin: Some("o".into()),
            traceparent: Some("00-ab-cd-01".into()),
        },
        body: (0..=255).collect::<Vec<u8>>().into(),
    };
    store(&transport, vec![outgoing(&queue, sent.clone()), outgoing(&queue, Message::default())]).await;
    assert_eq!(drain(&transport, &queue, 2).await, [sent, Message::default()]);
}

/// Messages of other publishers are readable, whatever their properties.
#[tokio::test]
async fn foreign_messages_never_fail() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let raw_client = RawClient::open().await;
    let mut odd = FieldTable::default();
    odd.insert("gm-attempt".into(), AMQPValue::ShortInt(3));
    odd.insert("gm-loss".into(), AMQPValue::LongString("many".into()));
    odd.insert("gm-reason".into(), AMQPValue::FieldTable(FieldTable::default()));
    let odd = BasicProperties::default()
        .with_correlation_id("no uuid".into())
        .with_timestamp(u64::MAX)
        .with_headers(odd);
    raw_client.publish(&queue, BasicProperties::default(), b"\xff\xfe").await;
    raw_client.publish(&queue, odd, b"").await;
    let messages = drain(&transport, &queue, 2).await;
    assert_eq!(messages[0], Message { body: b"\xff\xfe".as_slice().into(), ..Message::default() });
    assert_eq!((messages[1].headers.attempt, messages[1].headers.loss, messages[1].job), (3, 0, None));
    assert_eq!((&messages[1].headers.reason, messages[1].timestamp_ms), (&None, u64::MAX));
}

/// A full queue holds every message that it confirmed; all others are answered as rejected.
#[tokio::test]
async fn full_queue_loses_nothing() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut stored = BTreeSet::new();
    let mut rejected = 0;
    for round in 0..30 {
        let numbers = round * 100..(round + 1) * 100;
        let answers = publish(&transport, numbered(&queue, numbers.clone())).await;
        for (number, answer) in numbers.zip(answers) {
            match answer {
                Published::Confirmed => drop(stored.insert(number.to_string())),
                Published::Nacked => rejected += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(rejected >= 1_500, "only {rejected} of 3,000 were rejected");
    let drained: BTreeSet<_> =
        drain(&transport, &queue, stored.len()).await.into_iter().map(|message| message.id).collect();
    assert_eq!(drained, stored);
    store(&transport, numbered(&queue, 0..1)).await;
}

/// Concurrent publishes all arrive, each in its order.
#[tokio::test]
async fn concurrent_publishes_keep_order() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Requeued.of(&lane);
    let publishers = (0..4).map(|publisher| {
        let (transport, queue) = (Arc::clone(&transport), queue.clone());
        tokio::spawn(async move {
            for round in 0..5 {
                let batch =
                    (0..500).map(|n| outgoing(&queue, message(format!("{publisher} {}", round * 500 + n))));
                store(&transport, batch.collect()).await;
            }
        })
    });
    let published = join_all(publishers);
    let (messages, published) = futures::join!(drain(&transport, &queue, 10_000), published);
    assert!(published.iter().all(Result::is_ok));
    for publisher in 0..4 {
        let own = messages.iter().filter_map(|message| message.id.strip_prefix(&format!("{publisher} ")));
        assert!(own.map(|number| number.parse::<usize>().unwrap()).eq(0..2_500), "publisher {publisher}");
    }
}

/// A batch larger than the window is answered in its order.
#[tokio::test]
async fn large_batch_is_answered_in_order() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Requeued.of(&lane);
    let nowhere = QueueRole::Requeued.of(&Lane::new("amqp-nowhere").unwrap());
    let mut batch = numbered(&queue, 0..1_203);
    batch[700] = outgoing(&nowhere, message("lost"));
    batch[1_202].message.id = "x".repeat(300);
    let answers = publish(&transport, batch).await;
    assert_eq!(answers.len(), 1_203);
    assert_eq!(answers[700], Published::Unroutable);
    assert!(matches!(&answers[1_202], Published::Invalid(why) if why.contains("300 bytes")));
    assert_eq!(answers.iter().filter(|&answer| *answer == Published::Confirmed).count(), 1_201);
}

#[tokio::test]
async fn large_bodies_share_the_window() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Requeued.of(&lane);
    let large = |number: usize| {
        outgoing(
            &queue,
            Message { body: vec![number.try_into().unwrap(); 5 << 20].into(), ..message(number) },
        )
    };
    store(&transport, (0..10).map(large).collect()).await;
    let messages = drain(&transport, &queue, 10).await;
    for (number, message) in messages.iter().enumerate() {
        assert!(
            message.body.len() == 5 << 20 && message.body.iter().all(|byte| usize::from(*byte) == number)
        );
    }
}
