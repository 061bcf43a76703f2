//! The reference transport: a broker inside this process. Nothing it holds outlives the process.
//!
//! `gristmill run` takes a whole pipeline through it, and tests that need a broker start one. It behaves like
//! RabbitMQ where the contract leaves a choice: messages are pushed to consumers ahead of `recv`, in turn, and
//! whatever a consumer held when it went is counted as delivered, seen or not.
//!
//! A queue is bounded as its [`QueueSpec`](crate::QueueSpec) says. This broker never gives up on a message, so it
//! moves none to the dead queue.
//!
//! Nothing here spawns a task. A lock is held for the few statements that move a message, and nobody polls: who
//! waits is woken by what they wait for.

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
use broker::Broker;
use consumer::MemoryConsumer;
use events::MemoryEvents;
use journal::MemoryJournal;
use publisher::MemoryPublisher;

/// The largest body, in bytes. What the RabbitMQ transport takes, so that a job that runs here runs there: 16 MiB less
/// room for what travels with it.
pub const MAX_MESSAGE: usize = (16 << 20) - (64 << 10);

/// A connection to a broker inside this process.
///
/// Its futures need a tokio runtime with a timer. Dropping it closes nothing: what came from it goes on.
pub struct MemoryTransport {
    broker: Arc<Broker>,
    connection: Connection,
}

impl MemoryTransport {
    /// A connection to a new, empty broker, which lives as long as anything that came from it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::to(Arc::new(Broker::new()))
    }

    /// A further connection to the same broker, with an end of its own; also if this one is closed already.
    #[must_use]
    pub fn connect(&self) -> Arc<Self> {
        Self::to(Arc::clone(&self.broker))
    }

    fn to(broker: Arc<Broker>) -> Arc<Self> {
        let connection = Connection {
            id: broker.next_id(),
            closed: CancellationToken::new(),
            health: watch::Sender::new(Health::Well),
        };
        Arc::new(Self { broker, connection })
    }
}

/// One connection, as its parts see it.
#[derive(Clone, Debug)]
struct Connection {
    id: u64,
    closed: CancellationToken,
    health: watch::Sender<Health>,
}

impl Connection {
    fn alive(&self) -> Result<(), TransportError> {
        if self.closed.is_cancelled() { Err(disconnected()) } else { Ok(()) }
    }

    /// What `future` gives, unless the connection is closed before. As cancel safe as `future` is.
    async fn unless_closed<F: Future + Send>(&self, future: F) -> Result<F::Output, TransportError> {
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
        self.connection.alive()?;
        self.broker.open_lane(lane);
        Ok(())
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.connection.alive()?;
        Ok(self.broker.open_shards(lane, at_least))
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.connection.alive()?;
        Ok(Arc::new(MemoryPublisher::new(Arc::clone(&self.broker), self.connection.clone())))
    }

    /// A `prefetch` of 0 counts as 1.
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        self.connection.alive()?;
        let queue = self.broker.consumable(queue)?;
        let consumer = MemoryConsumer::join(queue, self.broker.next_id(), self.connection.clone(), prefetch);
        // Asked again after joining, so that a close at the same time finds the consumer or is found here.
        self.connection.alive()?;
        Ok(Box::new(consumer))
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.connection.alive()?;
        Ok(Box::new(MemoryJournal::open(Arc::clone(&self.broker), self.connection.clone())))
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.connection.alive()?;
        Ok(Box::new(MemoryEvents::listen(&self.broker, self.connection.clone(), filter)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.connection.health.subscribe()
    }

    async fn close(&self) {
        // From here on its consumers are handed nothing, in no queue: else those who end one by one, since they hear of
        // this, would hand what they held to the others, and one end would count as several deliveries.
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

/// No code under a lock here can panic between two statements that belong together, so a poisoned one is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
