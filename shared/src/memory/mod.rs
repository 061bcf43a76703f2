//! The reference transport: a broker inside this process. Its contents end with the process.
//!
//! `gristmill run` uses it for a whole pipeline, and tests use it as their broker. Where the
//! contract leaves a choice, it behaves like RabbitMQ: messages are pushed to consumers ahead of
//! `recv`, round robin, and all messages that a closed consumer held count as delivered, whether
//! `recv` returned them or not.
//!
//! A queue is bounded by its [`QueueSpec`](crate::QueueSpec). This broker never gives up on a
//! message, so it moves none to the dead queue.
//!
//! The transport spawns no task and never polls: waiting calls are woken by notifications. A lock
//! is held only for the few statements that move a message.

mod broker;
mod consumer;
mod events;
mod journal;
mod publisher;
mod queue;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Capabilities, Consumer, Durability, EventFilter, EventReader, Health, JournalReader, Lane, Publisher,
    Queue, Redelivery, Shards, Transport, TransportError,
};
use broker::MemoryBroker;
use consumer::MemoryConsumer;
use events::MemoryEventReader;
use journal::MemoryJournalReader;
use publisher::MemoryPublisher;

/// The largest body, in bytes: 16 MiB less room for the message's properties. The same as for the
/// RabbitMQ transport, so that a job that runs here runs there.
pub const MAX_MESSAGE: usize = (16 << 20) - (64 << 10);

/// A connection to a broker inside this process.
///
/// Its futures need a tokio runtime with a timer. Dropping it closes nothing: its publishers,
/// consumers and readers go on.
pub struct MemoryTransport {
    broker: Arc<MemoryBroker>,
    connection: MemoryConnection,
}

impl MemoryTransport {
    /// Returns a connection to a new, empty broker. The broker lives as long as its connections,
    /// publishers and consumers.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_broker(Arc::new(MemoryBroker::new()))
    }

    /// Returns a further connection to the same broker, which is closed by itself. Works on a
    /// closed connection as well.
    #[must_use]
    pub fn connect(&self) -> Arc<Self> {
        Self::with_broker(Arc::clone(&self.broker))
    }

    fn with_broker(broker: Arc<MemoryBroker>) -> Arc<Self> {
        let connection = MemoryConnection {
            id: broker.next_id(),
            closed: CancellationToken::new(),
            health: watch::Sender::new(Health::Ready),
        };
        Arc::new(Self { broker, connection })
    }
}

/// The state of one connection, shared with its publishers, consumers and readers.
#[derive(Clone, Debug)]
struct MemoryConnection {
    id: u64,
    closed: CancellationToken,
    health: watch::Sender<Health>,
}

impl MemoryConnection {
    fn check_open(&self) -> Result<(), TransportError> {
        if self.closed.is_cancelled() { Err(disconnected()) } else { Ok(()) }
    }

    /// Awaits `future`, or returns an error if the connection is closed before that. As cancel safe
    /// as `future`.
    async fn cancel_on_close<F: Future + Send>(&self, future: F) -> Result<F::Output, TransportError> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(disconnected()),
            output = future => Ok(output),
        }
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Volatile,
            redelivery: Redelivery::OnDisconnect,
            shared: false,
            max_hold: None,
            max_message: MAX_MESSAGE,
        }
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.connection.check_open()?;
        self.broker.open_lane(lane);
        Ok(())
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.connection.check_open()?;
        Ok(self.broker.open_shards(lane, at_least))
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.connection.check_open()?;
        Ok(Arc::new(MemoryPublisher::new(Arc::clone(&self.broker), self.connection.clone())))
    }

    /// A `prefetch` of 0 counts as 1.
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        self.connection.check_open()?;
        let queue = self.broker.consumable(queue)?;
        let consumer =
            MemoryConsumer::subscribe(queue, self.broker.next_id(), self.connection.clone(), prefetch);
        // Checked again after subscribing: a concurrent close either finds the consumer or is found
        // here.
        self.connection.check_open()?;
        Ok(Box::new(consumer))
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.connection.check_open()?;
        Ok(Box::new(MemoryJournalReader::open(Arc::clone(&self.broker.journal), self.connection.clone())))
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.connection.check_open()?;
        Ok(Box::new(MemoryEventReader::subscribe(&self.broker.events, self.connection.clone(), filter)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.connection.health.subscribe()
    }

    async fn close(&self) {
        // From here on its consumers receive nothing from any queue. Otherwise consumers that close
        // one by one would pass their messages to the others of this connection, and one close
        // would count as several deliveries.
        self.connection.closed.cancel();
        self.connection.health.send_replace(Health::Closed);
        self.broker.end_connection(self.connection.id);
    }
}

impl fmt::Display for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport").field("connection", &self.connection).finish_non_exhaustive()
    }
}

fn disconnected() -> TransportError {
    TransportError::Disconnected {
        transport: "memory".into(),
        reason: "the connection was closed here".into(),
    }
}

/// Locks a mutex, also a poisoned one: no code under these locks can panic between two statements
/// that belong together, so its data are consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
