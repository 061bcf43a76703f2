//! What only RabbitMQ does, beside the promises that every transport keeps: see the conformance suite.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use gristmill_amqp::{AmqpConfig, AmqpTransport, EVENTS_MAX_WAITING};
use gristmill_shared::{
    Address, Consumer, Delivery, EventFilter, Headers, JobId, JournalEntry, JournalReader, Lane, Message,
    Outgoing, Published, Queue, QueueRole, Settlement, Topic, Transport, TransportError,
};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, BasicRejectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use crate::broker_url;

/// Nothing here takes longer, or it hangs.
const BOUND: Duration = Duration::from_secs(20);
/// What must not come does not come for so long.
const QUIET: Duration = Duration::from_millis(300);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(BOUND, future).await.expect("it hangs")
}

async fn connect() -> Arc<AmqpTransport> {
    within(AmqpTransport::connect(AmqpConfig::new(&broker_url()).unwrap())).await.unwrap()
}

/// A connection, and a lane that nobody else uses.
async fn open() -> (Arc<AmqpTransport>, Lane) {
    let transport = connect().await;
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    within(transport.open_lane(&lane)).await.unwrap();
    (transport, lane)
}

fn message(id: impl ToString) -> Message {
    Message { id: id.to_string(), form: "test".into(), body: "{}".into(), ..Message::default() }
}

fn to(queue: &Queue, message: Message) -> Outgoing {
    Outgoing { to: Address::Queue(queue.clone()), message }
}

fn numbered(queue: &Queue, numbers: std::ops::Range<usize>) -> Vec<Outgoing> {
    numbers.map(|number| to(queue, message(number))).collect()
}

async fn publish(transport: &AmqpTransport, batch: Vec<Outgoing>) -> Vec<Published> {
    let publisher = transport.publisher().await.unwrap();
    within(publisher.publish(batch)).await
}

async fn store(transport: &AmqpTransport, batch: Vec<Outgoing>) {
    for answer in publish(transport, batch).await {
        assert_eq!(answer, Published::Stored);
    }
}

/// The next `count` deliveries.
async fn take(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.extend(within(consumer.recv(count - deliveries.len())).await.unwrap());
    }
    deliveries
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.message.id.as_str()).collect()
}

async fn nothing_comes(consumer: &mut Box<dyn Consumer>) {
    assert!(timeout(QUIET, consumer.recv(1)).await.is_err(), "something came");
}

/// What is there, taken and acked by a consumer that goes again.
async fn drain(transport: &AmqpTransport, queue: &Queue, count: usize) -> Vec<Message> {
    let mut consumer = transport.consume(queue, 200).await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        for delivery in within(consumer.recv(200)).await.unwrap() {
            delivery.receipt.ack();
            messages.push(delivery.message);
        }
    }
    within(consumer.close()).await;
    messages
}

/// Past our own code: as an operator or another language would.
struct ByHand {
    _connection: Connection,
    channel: Channel,
}

impl ByHand {
    async fn open() -> Self {
        let connection = Connection::connect(&broker_url(), ConnectionProperties::default()).await.unwrap();
        Self { channel: connection.create_channel().await.unwrap(), _connection: connection }
    }

    async fn publish(&self, queue: &Queue, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions::default();
        self.channel
            .basic_publish("".into(), queue.to_string().into(), options, body, properties)
            .await
            .unwrap();
    }

    async fn delete(&self, queue: &Queue) {
        self.channel.queue_delete(queue.to_string().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn all_properties_come_through_the_broker() {
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
            reason: Some("\u{e4}\n".into()),
            origin: Some("o".into()),
            traceparent: Some("00-ab-cd-01".into()),
        },
        body: (0..=255).collect::<Vec<u8>>().into(),
    };
    store(&transport, vec![to(&queue, sent.clone()), to(&queue, Message::default())]).await;
    assert_eq!(drain(&transport, &queue, 2).await, [sent, Message::default()]);
}

#[tokio::test]
async fn what_others_publish_never_fails() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let by_hand = ByHand::open().await;
    let mut odd = FieldTable::default();
    odd.insert("gm-attempt".into(), AMQPValue::ShortInt(3));
    odd.insert("gm-loss".into(), AMQPValue::LongString("many".into()));
    odd.insert("gm-reason".into(), AMQPValue::FieldTable(FieldTable::default()));
    let odd = BasicProperties::default()
        .with_correlation_id("no uuid".into())
        .with_timestamp(u64::MAX)
        .with_headers(odd);
    by_hand.publish(&queue, BasicProperties::default(), b"\xff\xfe").await;
    by_hand.publish(&queue, odd, b"").await;
    let messages = drain(&transport, &queue, 2).await;
    assert_eq!(messages[0], Message { body: b"\xff\xfe".as_slice().into(), ..Message::default() });
    assert_eq!((messages[1].headers.attempt, messages[1].headers.loss, messages[1].job), (3, 0, None));
    assert_eq!((&messages[1].headers.reason, messages[1].timestamp_ms), (&None, u64::MAX));
}

#[tokio::test]
async fn a_deleted_queue_makes_its_messages_unroutable_and_ends_its_consumers() {
    let (transport, lane) = open().await;
    let (gone, there) = (QueueRole::Suspect.of(&lane), QueueRole::Again.of(&lane));
    let mut consumer = transport.consume(&gone, 10).await.unwrap();
    ByHand::open().await.delete(&gone).await;

    let error = within(consumer.recv(1)).await.unwrap_err();
    assert!(matches!(error, TransportError::Disconnected { .. }), "{error}");
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
    assert!(within(consumer.recv(1)).await.is_err());

    let mixed: Vec<_> =
        (0..100).map(|number| to(if number % 3 == 0 { &gone } else { &there }, message(number))).collect();
    for (number, answer) in publish(&transport, mixed).await.into_iter().enumerate() {
        let expected = if number % 3 == 0 { Published::Unroutable } else { Published::Stored };
        assert_eq!(answer, expected, "message {number}");
    }
    assert_eq!(drain(&transport, &there, 66).await.len(), 66);
}

#[tokio::test]
async fn a_full_queue_loses_nothing() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut stored = BTreeSet::new();
    let mut rejected = 0;
    for round in 0..30 {
        let numbers = round * 100..(round + 1) * 100;
        let answers = publish(&transport, numbered(&queue, numbers.clone())).await;
        for (number, answer) in numbers.zip(answers) {
            match answer {
                Published::Stored => drop(stored.insert(number.to_string())),
                Published::Rejected => rejected += 1,
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

#[tokio::test]
async fn many_publishes_at_once_all_arrive_and_each_keeps_its_order() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Again.of(&lane);
    let publishers = (0..4).map(|publisher| {
        let (transport, queue) = (Arc::clone(&transport), queue.clone());
        tokio::spawn(async move {
            for round in 0..5 {
                let batch = (0..500).map(|n| to(&queue, message(format!("{publisher} {}", round * 500 + n))));
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

#[tokio::test]
async fn a_batch_larger_than_the_window_is_answered_in_its_order() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Again.of(&lane);
    let nowhere = QueueRole::Again.of(&Lane::new("amqp-nowhere").unwrap());
    let mut batch = numbered(&queue, 0..1_203);
    batch[700] = to(&nowhere, message("lost"));
    batch[1_202].message.id = "x".repeat(300);
    let answers = publish(&transport, batch).await;
    assert_eq!(answers.len(), 1_203);
    assert_eq!(answers[700], Published::Unroutable);
    assert!(matches!(&answers[1_202], Published::Refused(why) if why.contains("300 bytes")));
    assert_eq!(answers.iter().filter(|&answer| *answer == Published::Stored).count(), 1_201);
}

#[tokio::test]
async fn large_bodies_share_the_window() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Again.of(&lane);
    let large = |number: usize| {
        to(&queue, Message { body: vec![number.try_into().unwrap(); 5 << 20].into(), ..message(number) })
    };
    store(&transport, (0..10).map(large).collect()).await;
    let messages = drain(&transport, &queue, 10).await;
    for (number, message) in messages.iter().enumerate() {
        assert!(
            message.body.len() == 5 << 20 && message.body.iter().all(|byte| usize::from(*byte) == number)
        );
    }
}

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
    assert_eq!((ids(&again), again[0].redelivered), (vec!["2"], true));
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
    assert!(again.iter().all(|delivery| delivery.redelivered));
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
async fn a_retry_ripens_when_its_time_has_come() {
    let (transport, lane) = open().await;
    let retry = QueueRole::Retry(gristmill_shared::RetryDelay::Second).of(&lane);
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
    assert!(taken_over.iter().all(|delivery| delivery.redelivered));
}

/// The facts of one test, in order, up to the point where the reader had caught up.
async fn read_journal(reader: &mut Box<dyn JournalReader>, job: JobId) -> Vec<String> {
    let mut own = Vec::new();
    loop {
        match within(reader.next()).await.unwrap() {
            JournalEntry::Fact(fact) if fact.job == Some(job) => own.push(fact.id),
            JournalEntry::Fact(_) => {}
            JournalEntry::CaughtUp => return own,
        }
    }
}

fn facts(job: JobId, numbers: std::ops::Range<usize>) -> Vec<Outgoing> {
    let fact = |number| Message { job: Some(job), ..message(number) };
    numbers.map(|number| Outgoing { to: Address::Journal, message: fact(number) }).collect()
}

#[tokio::test]
async fn the_journal_is_caught_up_with_after_exactly_what_was_there() {
    let (transport, _) = open().await;
    let job = JobId::generate();
    for count in [0, 1, 5_000] {
        let written = read_journal(&mut transport.journal().await.unwrap(), job).await.len();
        store(&transport, facts(job, written..count)).await;
        let mut reader = transport.journal().await.unwrap();
        store(&transport, facts(job, count..count + 1)).await; // after it was opened
        let read = read_journal(&mut reader, job).await;
        // What comes while it is opened may be told before or after.
        assert!((count..=count + 1).contains(&read.len()), "{} of {count}", read.len());
        assert!(read.iter().map(|id| id.parse::<usize>().unwrap()).eq(0..read.len()));
        while read.len() == count {
            match within(reader.next()).await.unwrap() {
                JournalEntry::Fact(fact) if fact.job != Some(job) => {}
                JournalEntry::Fact(fact) => {
                    assert_eq!(fact.id, count.to_string());
                    break;
                }
                JournalEntry::CaughtUp => panic!("told twice"),
            }
        }
    }
}

#[tokio::test]
async fn events_reach_whoever_asked_for_them_and_a_slow_listener_misses_the_oldest() {
    let (transport, lane) = open().await;
    let other = connect().await;
    let (job, stranger) = (JobId::generate(), JobId::generate());
    let mut of_lane = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    let mut of_job = other.events(EventFilter::Job(job)).await.unwrap();
    let event = |job, id: usize| {
        let to = Address::Events(Topic::Job(lane.clone(), job));
        Outgoing { to, message: message(id) }
    };
    store(&transport, vec![event(stranger, 0), event(job, 1)]).await;
    assert_eq!(within(of_lane.next()).await.unwrap().id, "0");
    assert_eq!(within(of_lane.next()).await.unwrap().id, "1");
    assert_eq!(within(of_job.next()).await.unwrap().id, "1");

    let many = usize::try_from(EVENTS_MAX_WAITING).unwrap() + 3_000;
    store(&transport, (2..many).map(|id| event(job, id)).collect()).await;
    let mut heard = vec![];
    while heard.last() != Some(&(many - 1)) {
        heard.push(within(of_job.next()).await.unwrap().id.parse().unwrap());
    }
    assert!(heard.is_sorted());
    let most = usize::try_from(EVENTS_MAX_WAITING).unwrap() + 1_000; // and what was under way
    assert!((1_000..most).contains(&heard.len()), "{} heard", heard.len());
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
async fn a_closed_transport_has_handed_on_its_acks_and_fails_from_then_on() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..3)).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    let mut idle = transport.consume(&QueueRole::Again.of(&lane), 10).await.unwrap();
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let mut held = take(&mut consumer, 3).await;
    held.remove(0).receipt.ack();
    let waiting = tokio::spawn(async move { idle.recv(1).await.map(drop) });
    within(transport.close()).await;
    for result in [
        within(waiting).await.unwrap(),
        within(consumer.recv(1)).await.map(drop),
        within(events.next()).await.map(drop),
        within(transport.open_lane(&lane)).await,
        within(transport.publisher()).await.map(drop),
        within(transport.consume(&queue, 1)).await.map(drop),
        within(transport.journal()).await.map(drop),
    ] {
        assert!(matches!(result, Err(TransportError::Disconnected { .. })), "{result:?}");
    }
    assert_eq!(
        within(publisher.publish(numbered(&queue, 0..2))).await,
        [Published::Unknown, Published::Unknown]
    );
    held.into_iter().for_each(|delivery| delivery.receipt.ack());
    let mut left: Vec<_> =
        drain(&*connect().await, &queue, 2).await.into_iter().map(|message| message.id).collect();
    left.sort();
    assert_eq!(left, ["1", "2"]);
}

#[tokio::test]
async fn what_came_from_a_dropped_transport_goes_on() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let publisher = transport.publisher().await.unwrap();
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    drop(transport);
    assert_eq!(within(publisher.publish(numbered(&queue, 0..1))).await, [Published::Stored]);
    take(&mut consumer, 1).await.remove(0).receipt.ack();
    drop((publisher, consumer)); // and with the last of it the connections, here, on a thread that runs async code
    let mut next = connect().await.consume(&queue, 10).await.unwrap();
    nothing_comes(&mut next).await;
}

#[tokio::test]
async fn a_wrong_password_or_virtual_host_is_denied_at_once_and_not_shown() {
    let url = broker_url();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, place) = rest.split_once('@').unwrap();
    let place = place.split('/').next().unwrap();
    let wrong_password = format!("{scheme}://nobody:sesame@{place}");
    let wrong_vhost = format!("{scheme}://{user}@{place}/nowhere");
    for (url, hint) in [(wrong_password, "ACCESS_REFUSED"), (wrong_vhost, "nowhere")] {
        let start = Instant::now();
        let error = within(AmqpTransport::connect(AmqpConfig::new(&url).unwrap())).await.unwrap_err();
        assert!(matches!(error, TransportError::Denied { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let text = format!("{error} {error:?}");
        assert!(text.contains(hint) && text.contains(place) && !text.contains("sesame"), "{text}");
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable_after_the_time_given() {
    // A socket that listens and never answers, and one that is closed.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, reason) in [(silent.local_addr().unwrap(), "no answer"), (closed, "refused")] {
        let mut config = AmqpConfig::new(&format!("amqp://me:sesame@{address}")).unwrap();
        config.give_up_after = Duration::from_secs(1);
        let start = Instant::now();
        let error = within(AmqpTransport::connect(config)).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let TransportError::Unreachable { tries, .. } = &error else { panic!("{error}") };
        assert!(*tries >= 1);
        let text = error.to_string();
        assert!(text.contains(reason) && text.contains(&address.to_string()), "{text}");
        assert!(!text.contains("sesame"), "{text}");
    }
}

#[tokio::test]
async fn what_does_not_speak_amqp_is_told_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    let start = Instant::now();
    let config = AmqpConfig::new(&format!("amqp://me:sesame@{address}")).unwrap();
    let error = within(AmqpTransport::connect(config)).await.unwrap_err();
    assert!(matches!(error, TransportError::Invalid(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let text = error.to_string();
    assert!(
        text.contains("AMQP") && text.contains(&address.to_string()) && !text.contains("sesame"),
        "{text}"
    );
    server.abort();
}
