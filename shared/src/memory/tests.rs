//! Tests of the memory transport beyond the conformance suite.

use std::{
    pin::pin,
    task::{Context, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::{Instant, timeout};

use super::{
    events::EVENTS_MAX_WAITING,
    journal::{JOURNAL_MAX_BYTES, JOURNAL_MAX_FACTS},
    *,
};
use crate::{
    Address, Delivery, JobId, JournalEntry, Message, Outgoing, Published, QueueRole, RESULTS_MAX_BYTES,
    RetryDelay, Topic,
};

async fn open() -> (Arc<MemoryTransport>, Lane) {
    let transport = MemoryTransport::new();
    let lane = Lane::default();
    transport.open_lane(&lane).await.unwrap();
    (transport, lane)
}

fn queue_address(role: QueueRole) -> Address {
    Address::Queue(role.of(&Lane::default()))
}

async fn publish(transport: &MemoryTransport, to: Address, message: Message) -> Published {
    let publisher = transport.publisher().await.unwrap();
    publisher.publish(vec![Outgoing { to, message }]).await.remove(0)
}

fn message(id: impl fmt::Display) -> Message {
    Message { id: id.to_string(), ..Message::default() }
}

/// Receives the next deliveries and returns their ids.
async fn next(consumer: &mut dyn Consumer, max: usize) -> Vec<String> {
    let deliveries = expect_ready(consumer.recv(max)).await.unwrap();
    ids(&deliveries).into_iter().map(str::to_owned).collect()
}

async fn expect_ready<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(3_600), future).await.expect("it never happened")
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.message.id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn requeue_keeps_order() {
    let (transport, lane) = open().await;
    let tasks = QueueRole::Tasks.of(&lane);
    for id in 0..6 {
        assert_eq!(
            publish(&transport, queue_address(QueueRole::Tasks), message(id)).await,
            Published::Confirmed
        );
    }
    let mut one = transport.consume(&tasks, 2).await.unwrap();
    let two = transport.consume(&tasks, 2).await.unwrap();
    let mut first = expect_ready(one.recv(2)).await.unwrap();
    first.remove(0).receipt.requeue(); // this consumer receives it again, before number 4
    assert_eq!(next(&mut *one, 2).await, ["0"]);
    drop(one);
    drop(two);
    let mut last = transport.consume(&tasks, 6).await.unwrap();
    let all = expect_ready(last.recv(6)).await.unwrap();
    assert_eq!(ids(&all), ["0", "1", "2", "3", "4", "5"]);
    let redelivered: Vec<_> = all.iter().map(|delivery| delivery.is_redelivered()).collect();
    assert_eq!(redelivered, [true, true, true, true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn consumers_take_turns() {
    let (transport, lane) = open().await;
    let tasks = QueueRole::Tasks.of(&lane);
    let mut consumers = Vec::new();
    for _ in 0..3 {
        consumers.push(transport.consume(&tasks, 100).await.unwrap());
    }
    for id in 0..30 {
        assert_eq!(
            publish(&transport, queue_address(QueueRole::Tasks), message(id)).await,
            Published::Confirmed
        );
    }
    for consumer in &mut consumers {
        assert_eq!(expect_ready(consumer.recv(100)).await.unwrap().len(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn stopped_consumer_hands_over() {
    let (transport, lane) = open().await;
    let results = QueueRole::Results.of(&lane);
    let mut active = transport.consume(&results, 1).await.unwrap();
    let mut standby = transport.consume(&results, 1).await.unwrap();
    for id in 0..2 {
        assert_eq!(
            publish(&transport, queue_address(QueueRole::Results), message(id)).await,
            Published::Confirmed
        );
    }
    assert!(standby.recv(1).now_or_never().is_none());
    active.stop().await.unwrap();
    assert_eq!(next(&mut *standby, 1).await, ["1"]);
    assert_eq!(next(&mut *active, 1).await, ["0"]);
}

#[tokio::test(start_paused = true)]
async fn receipts_settle_from_any_thread() {
    let (transport, lane) = open().await;
    for id in 0..2 {
        assert_eq!(
            publish(&transport, queue_address(QueueRole::Tasks), message(id)).await,
            Published::Confirmed
        );
    }
    let mut consumer = transport.consume(&QueueRole::Tasks.of(&lane), 1).await.unwrap();
    let first = expect_ready(consumer.recv(1)).await.unwrap().remove(0);
    std::thread::spawn(|| first.receipt.ack()).join().unwrap();
    assert_eq!(next(&mut *consumer, 1).await, ["1"]);
}

#[tokio::test(start_paused = true)]
async fn results_are_bounded_in_bytes() {
    let (transport, _) = open().await;
    let body = Bytes::from(vec![0; 8 << 20]); // shared by all
    for id in 0..RESULTS_MAX_BYTES / body.len() as u64 {
        let message = Message { body: body.clone(), ..message(id) };
        assert_eq!(
            publish(&transport, queue_address(QueueRole::Results), message).await,
            Published::Confirmed
        );
    }
    assert_eq!(
        publish(&transport, queue_address(QueueRole::Results), message("more")).await,
        Published::Nacked
    );
    let results = QueueRole::Results.of(&Lane::default());
    let mut consumer = transport.consume(&results, 1).await.unwrap();
    assert_eq!(expect_ready(consumer.recv(1)).await.unwrap().len(), 1);
    assert_eq!(
        publish(&transport, queue_address(QueueRole::Results), message("more")).await,
        Published::Confirmed
    );
}

#[tokio::test(start_paused = true)]
async fn shorter_retry_arrives_first() {
    let (transport, lane) = open().await;
    let mut again = transport.consume(&QueueRole::Requeued.of(&lane), 10).await.unwrap();
    let start = Instant::now();
    for delay in [RetryDelay::TenMinutes, RetryDelay::Minute, RetryDelay::Second] {
        let stored = publish(&transport, queue_address(QueueRole::Retry(delay)), message(delay)).await;
        assert_eq!(stored, Published::Confirmed);
        assert!(again.recv(1).now_or_never().is_none()); // it waits from here on
    }
    for delay in [RetryDelay::Second, RetryDelay::Minute, RetryDelay::TenMinutes] {
        assert_eq!(next(&mut *again, 10).await, [delay.to_string()]);
        let late = start.elapsed() - delay.duration();
        assert!(late < Duration::from_millis(10), "{late:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn earliest_retry_wakes_consumer() {
    let (transport, lane) = open().await;
    let mut again = transport.consume(&QueueRole::Requeued.of(&lane), 10).await.unwrap();
    let mut first = async |role| {
        let consumer = &mut *again;
        let publish = async {
            tokio::task::yield_now().await; // while the consumer waits
            assert_eq!(
                publish(&transport, queue_address(role), message(role.of(&lane))).await,
                Published::Confirmed
            );
        };
        tokio::join!(next(consumer, 1), publish).0
    };
    let (ready, ripe) = (QueueRole::Requeued, QueueRole::Retry(RetryDelay::Second));
    let start = Instant::now();
    assert_eq!(first(ready).await, ["gristmill.default.again"]);
    assert_eq!(first(ripe).await, ["gristmill.default.retry.1s"]);
    let stored =
        publish(&transport, queue_address(QueueRole::Retry(RetryDelay::Minute)), message("later")).await;
    assert_eq!(stored, Published::Confirmed);
    assert_eq!(first(ready).await, ["gristmill.default.again"]);
    assert_eq!(first(ripe).await, ["gristmill.default.retry.1s"]);
    assert_eq!(start.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn retry_queue_has_no_consumers() {
    let (transport, lane) = open().await;
    let error = transport.consume(&QueueRole::Retry(RetryDelay::Second).of(&lane), 1).await.unwrap_err();
    assert!(error.to_string().contains("(hint: consume gristmill.default.again)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn empty_journal_catches_up_at_once() {
    let (transport, _) = open().await;
    let mut journal = transport.journal().await.unwrap();
    assert!(matches!(journal.next().now_or_never(), Some(Ok(JournalEntry::CaughtUp))));
    assert!(journal.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn full_journal_drops_oldest_facts() {
    let body = Bytes::from(vec![0; MAX_MESSAGE]); // shared by all
    for (body, kept) in [(body, JOURNAL_MAX_BYTES / MAX_MESSAGE), (Bytes::new(), JOURNAL_MAX_FACTS)] {
        let (transport, _) = open().await;
        let mut slow = transport.journal().await.unwrap();
        assert!(matches!(expect_ready(slow.next()).await, Ok(JournalEntry::CaughtUp)));
        for id in 0..kept + 3 {
            let fact = Message { body: body.clone(), ..message(id) };
            assert_eq!(publish(&transport, Address::Journal, fact).await, Published::Confirmed);
            if id == 0 {
                assert_eq!(next_fact(&mut *slow).await, "0");
            }
        }
        for id in 3..kept + 3 {
            assert_eq!(next_fact(&mut *slow).await, id.to_string());
        }
        assert!(slow.next().now_or_never().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn closed_journal_ends() {
    let (transport, _) = open().await;
    assert_eq!(publish(&transport, Address::Journal, message("kept")).await, Published::Confirmed);
    let mut journal = transport.journal().await.unwrap();
    transport.close().await;
    assert!(expect_ready(journal.next()).await.is_err());
}

async fn next_fact(journal: &mut dyn JournalReader) -> String {
    match expect_ready(journal.next()).await.unwrap() {
        JournalEntry::Fact(fact) => fact.id,
        JournalEntry::CaughtUp => panic!("it has caught up already"),
    }
}

#[tokio::test(start_paused = true)]
async fn slow_event_reader_misses_oldest() {
    let (transport, lane) = open().await;
    let mut slow = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    let topic = Topic::Job(lane, JobId::generate());
    for id in 0..EVENTS_MAX_WAITING + 3 {
        let _ = publish(&transport, Address::Events(topic.clone()), message(id)).await;
    }
    for id in 3..EVENTS_MAX_WAITING + 3 {
        assert_eq!(expect_ready(slow.next()).await.unwrap().id, id.to_string());
    }
}

/// A waker that drops a consumer.
struct DropOnWake(Mutex<Option<Box<dyn Consumer>>>);

impl Wake for DropOnWake {
    fn wake(self: Arc<Self>) {
        drop(lock(&self.0).take());
    }
}

/// Messages of a closed connection go to none of its other consumers in the meantime.
#[tokio::test(start_paused = true)]
async fn close_requeues_to_other_connections() {
    let (transport, lane) = open().await;
    let tasks = QueueRole::Tasks.of(&lane);
    let further = transport.connect();
    let mut holds = further.consume(&tasks, 1).await.unwrap();
    assert_eq!(
        publish(&transport, queue_address(QueueRole::Tasks), message("held")).await,
        Published::Confirmed
    );
    assert_eq!(next(&mut *holds, 1).await, ["held"]);
    let _has_room = further.consume(&tasks, 1).await.unwrap();
    let mut events = further.events(EventFilter::Lane(lane)).await.unwrap();
    let mut waiting = pin!(events.next()); // learns of the close before the queues do
    let waker = Waker::from(Arc::new(DropOnWake(Mutex::new(Some(holds)))));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    further.close().await;
    let mut heir = transport.consume(&tasks, 1).await.unwrap();
    let again = expect_ready(heir.recv(1)).await.unwrap();
    assert_eq!((ids(&again), again[0].deliveries_before), (vec!["held"], 1));
}

#[tokio::test(start_paused = true)]
async fn connect_works_after_close() {
    let (transport, lane) = open().await;
    assert_eq!(
        publish(&transport, queue_address(QueueRole::Tasks), message("kept")).await,
        Published::Confirmed
    );
    transport.close().await;
    let further = transport.connect();
    let mut consumer = further.consume(&QueueRole::Tasks.of(&lane), 1).await.unwrap();
    assert_eq!(next(&mut *consumer, 1).await, ["kept"]);
}
