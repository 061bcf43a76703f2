//! The scene of a promise: a connection and a lane of its own, with helpers for the checks.

use std::{
    collections::BTreeSet,
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{Connect, QUIET_PERIOD, WAIT_BOUND};
use crate::{
    Address, Consumer, Delivery, JobId, Lane, Message, Outgoing, Published, Publisher, Queue, QueueRole,
    Transport,
};

/// A connection, a publisher and an open lane for one promise.
pub(super) struct Scene {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) lane: Lane,
    connect: Connect,
    others: Mutex<Vec<Arc<dyn Transport>>>,
}

impl Scene {
    pub(super) async fn open(connect: &Connect) -> Self {
        let transport = bounded("a connection", connect()).await;
        let lane = new_lane();
        bounded("open_lane", transport.open_lane(&lane)).await.expect("a lane");
        let publisher = bounded("a publisher", transport.publisher()).await.expect("a publisher");
        Self { transport, publisher, lane, connect: Arc::clone(connect), others: Mutex::default() }
    }

    pub(super) async fn close(self) {
        let others = self.others.into_inner().unwrap_or_default();
        for transport in others.iter().chain([&self.transport]) {
            bounded("closing", transport.close()).await;
        }
    }

    /// Opens a second connection, with the lane open. It is closed with the scene.
    pub(super) async fn second_connection(&self) -> Arc<dyn Transport> {
        let other = bounded("a second connection", (self.connect)()).await;
        bounded("open_lane", other.open_lane(&self.lane)).await.expect("a lane");
        self.others.lock().expect("no panic").push(Arc::clone(&other));
        other
    }

    pub(super) fn queue(&self, role: QueueRole) -> Queue {
        role.of(&self.lane)
    }

    pub(super) async fn consumer(&self, role: QueueRole, prefetch: u16) -> Box<dyn Consumer> {
        consumer(&*self.transport, &self.queue(role), prefetch).await
    }

    /// Publishes to a queue and expects every message to be stored.
    pub(super) async fn publish(&self, role: QueueRole, messages: Vec<Message>) {
        self.send(Address::Queue(self.queue(role)), messages).await;
    }

    /// Publishes to any address and expects every message to be stored.
    pub(super) async fn send(&self, to: Address, messages: Vec<Message>) {
        let batch: Vec<_> =
            messages.into_iter().map(|message| Outgoing { to: to.clone(), message }).collect();
        let count = batch.len();
        let answers = answers(&*self.publisher, batch).await;
        assert_eq!(answers, vec![Published::Confirmed; count], "the answers to a publish to {to:?}");
    }

    /// Expects an empty queue: the next delivery must be a marker that is published now.
    pub(super) async fn expect_empty(&self, role: QueueRole) {
        let marker = message(format!("marker-{}", JobId::generate()));
        self.publish(role, vec![marker.clone()]).await;
        let mut consumer = self.consumer(role, 1).await;
        let mut next = receive(&mut *consumer, 1).await;
        let next = next.remove(0);
        assert_eq!(next.message.id, marker.id, "the queue was not empty");
        next.receipt.ack();
        bounded("closing a consumer", consumer.close()).await;
    }
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scene({}, {})", self.transport, self.lane)
    }
}

/// Returns a lane with a new, unique name.
pub(super) fn new_lane() -> Lane {
    Lane::new(&format!("conformance-{}", JobId::generate())).expect("a UUID has the right characters")
}

/// Awaits something that must happen within [`WAIT_BOUND`].
pub(super) async fn bounded<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(WAIT_BOUND, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: nothing within {WAIT_BOUND:?}"),
    }
}

/// Expects no delivery for [`QUIET_PERIOD`]. `because` gives the reason, for the panic's text.
pub(super) async fn expect_quiet(consumer: &mut dyn Consumer, because: &str) {
    match timeout(QUIET_PERIOD, consumer.recv(1)).await {
        Err(_) => {}
        Ok(Ok(deliveries)) => panic!("{because}, but {:?} came", ids(&deliveries)),
        Ok(Err(error)) => panic!("{because}, but the consumer ended: {error}"),
    }
}

pub(super) async fn answers(publisher: &dyn Publisher, batch: Vec<Outgoing>) -> Vec<Published> {
    bounded("the answers to a publish", publisher.publish(batch)).await
}

pub(super) async fn consumer(transport: &dyn Transport, queue: &Queue, prefetch: u16) -> Box<dyn Consumer> {
    bounded("consume", transport.consume(queue, prefetch)).await.expect("a consumer")
}

/// Receives the next `count` deliveries, neither fewer nor more.
pub(super) async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let what = format!("delivery {} of {count}", all.len() + 1);
        let some = bounded(&what, consumer.recv(count - all.len())).await.expect("a delivery");
        assert!(!some.is_empty(), "{what}: the consumer ended without a stop");
        assert!(some.len() <= count - all.len(), "{what}: {} came instead", some.len());
        all.extend(some);
    }
    all
}

pub(super) fn ack(deliveries: Vec<Delivery>) {
    deliveries.into_iter().for_each(|delivery| delivery.receipt.ack());
}

pub(super) fn message(id: impl fmt::Display) -> Message {
    Message {
        body: Bytes::from(format!("the body of {id}")),
        id: id.to_string(),
        form: "gristmill.conformance.v1".into(),
        app: "conformance".into(),
        content_type: "text/plain".into(),
        timestamp_ms: 1_700_000_000_000, // whole seconds, since a broker may carry no more
        ..Message::default()
    }
}

/// Returns messages whose ids are these numbers.
pub(super) fn messages(numbers: Range<u32>) -> Vec<Message> {
    numbers.map(message).collect()
}

/// Returns the ids of [`messages`].
pub(super) fn numbers(numbers: Range<u32>) -> BTreeSet<String> {
    numbers.map(|number| number.to_string()).collect()
}

/// Returns the ids of deliveries, and expects each id once.
pub(super) fn ids<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for delivery in deliveries {
        assert!(ids.insert(delivery.message.id.clone()), "{} was delivered twice", delivery.message.id);
    }
    ids
}
