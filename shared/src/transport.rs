//! The interface between the roles and a broker: three primitives, independent of any client
//! library.
//!
//! | primitive | semantics | for |
//! |---|---|---|
//! | work queue | competing consumers, each message settled once | task batches, results |
//! | log | kept, many readers, each from the start | the journal |
//! | topic | live, pub/sub, lost without a subscriber | events |

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{JobId, Lane, Message, Queue, Shards, WorkerId};

/// A connection to a broker, or an equivalent of one. Shared by all parts of a process.
///
/// A transport may reconnect by itself when its connection is lost. Then its publishers, consumers
/// and readers continue with a delay. Requests wait. Publishes without an answer are repeated.
/// Consumers take messages again: unsettled messages are delivered again, and their old receipts do
/// nothing. A journal reader continues at its position. An event reader misses the events in
/// between. [`TransportError::Disconnected`] and [`Published::Unknown`] then mean that the
/// connection is lost for good.
///
/// An implementor writes every method; none has a default. The conformance suite (feature
/// `conformance`) specifies the behaviour of each. `Display` names the instance for errors and
/// logs, without its password.
#[async_trait]
pub trait Transport: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// Returns the capabilities of the backend. Constant for the life of the transport.
    fn capabilities(&self) -> Capabilities;

    /// Creates the lane's queues, the journal and the events topic where they are missing.
    /// Idempotent; every role calls it before anything else. With a user that may not create
    /// entities it only checks that all exist.
    ///
    /// # Errors
    /// [`TransportError::Mismatch`] if an entity exists with other settings and the user may create
    /// such entities; [`TransportError::PermissionDenied`] if an entity is missing and the user may
    /// not create it.
    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError>;

    /// Creates the missing shards of a lane's tasks queue up to `at_least`, and returns the number
    /// of shards that exist without a gap; other processes may have created more. [`Shards::ONE`]
    /// creates nothing and only counts. Idempotent; users of shards call it after
    /// [`Transport::open_lane`].
    ///
    /// Callers that create shards must consume from all of them, or make sure that a worker does:
    /// in a shard without a consumer, tasks would wait forever.
    ///
    /// # Errors
    /// [`TransportError::Mismatch`] if a shard exists with other settings.
    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError>;

    /// Opens a publisher. All publishers of a process may share one connection.
    ///
    /// # Errors
    /// If the connection is lost for good.
    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError>;

    /// Starts to consume a queue. At most `prefetch` messages are unsettled at any time.
    ///
    /// # Errors
    /// If the connection or the queue is lost for good.
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError>;

    /// Opens a reader that reads the journal from its start and then follows it.
    ///
    /// # Errors
    /// If the connection is lost for good.
    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError>;

    /// Subscribes to events from now on.
    ///
    /// # Errors
    /// If the connection is lost for good.
    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError>;

    /// Returns a channel with the present health of the transport and its changes. Meant for
    /// displays and health checks; other callers do not need it, because requests wait by
    /// themselves.
    fn health(&self) -> watch::Receiver<Health>;

    /// Sends the pending settlements and closes the connections. Unsettled messages are delivered
    /// again, to other consumers. Everything that this transport opened then fails with
    /// [`TransportError::Disconnected`].
    async fn close(&self);
}

/// The present health of a transport.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// Connected, and the broker takes messages.
    Ready,
    /// Connected, but the broker accepts no messages, with the reason: it is low on memory, for
    /// instance. It still delivers.
    Blocked(String),
    /// Connected, and the broker takes messages, but a consumer or reader ended and cannot be
    /// restarted yet, with the reason: its queue was deleted, for instance. The transport keeps
    /// trying.
    Degraded(String),
    /// The connection is lost, with the reason; the transport reconnects.
    Reconnecting(String),
    /// The connection is closed for good.
    Closed,
}

/// A publisher of messages to the broker.
#[async_trait]
pub trait Publisher: fmt::Debug + Send + Sync {
    /// Publishes a batch, waits for the broker's answer to every message, and returns the answers
    /// in the order of the batch. Waits while the bounded window of unconfirmed messages is full,
    /// or while the broker blocks.
    ///
    /// Several calls may run at once. Dropping the future withdraws nothing: the messages may still
    /// be stored.
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published>;
}

/// A message with its destination.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The destination.
    pub to: Address,
    /// The message.
    pub message: Message,
}

/// The destination of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A work queue. Durable; the message is returned if the queue is missing.
    Queue(Queue),
    /// The journal. Durable.
    Journal,
    /// The present subscribers of a topic.
    Events(Topic),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => queue.fmt(f),
            Self::Journal => f.write_str("the journal"),
            Self::Events(_) => f.write_str("the events"),
        }
    }
}

/// The broker's answer to a published message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Published {
    /// The broker has taken responsibility for the message. (For events: it was passed to the
    /// present subscribers.)
    Confirmed,
    /// The broker rejected the message, because the queue is full or because of a failure of its
    /// own. It is not stored. Callers try again later.
    Nacked,
    /// The queue does not exist. The message is not stored.
    Unroutable,
    /// The connection was lost for good before the answer: the message may be stored or not.
    /// Publishing it again may make a duplicate.
    Unknown,
    /// The message can never be published, with the reason: it is larger than the broker takes.
    /// Other messages may succeed.
    Invalid(String),
    /// The user may not publish there, with the broker's message. No message succeeds until an
    /// operator changes that.
    Forbidden(String),
}

/// A consumer of one queue. Dropping it requeues unsettled messages.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// Waits for at least one delivery and returns those that have arrived, at most `max`. An empty
    /// vector means that [`Consumer::stop`] was called and all earlier deliveries have been
    /// returned.
    ///
    /// Cancel safe: a dropped call loses no delivery.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`] if the connection or the queue is lost for good; all later
    /// calls fail alike.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError>;

    /// Cancels further deliveries. Deliveries that have arrived are still returned and can be
    /// settled, unless the connection is lost meanwhile: a stopped consumer is not restarted.
    ///
    /// # Errors
    /// If the connection is lost for good.
    async fn stop(&mut self) -> Result<(), TransportError>;

    /// Sends all settlements so far to the broker, then requeues unsettled messages.
    async fn close(self: Box<Self>);
}

/// A message that the broker has delivered and that this process must settle.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The number of earlier deliveries that were not settled. They alone do not mean that a
    /// consumer crashed. A backend that cannot count returns 1 for every number above 0.
    pub deliveries_before: u32,
    /// The right to settle it.
    pub receipt: Receipt,
}

impl Delivery {
    /// True if an earlier delivery of the message was not settled.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.deliveries_before > 0
    }
}

/// The right to settle one delivery, once: settling consumes it.
///
/// Dropping a receipt settles nothing: the message stays with its consumer until that ends, and is
/// then delivered again. A receipt may outlive its connection; settling it then does nothing,
/// because the broker has already requeued the message.
#[derive(Debug)]
#[must_use = "an unsettled delivery counts against the prefetch"]
pub struct Receipt {
    token: Token,
    settler: Arc<dyn Settler>,
}

impl Receipt {
    /// Makes the receipt of the delivery that `token` names. Called by transports.
    pub fn new(token: Token, settler: Arc<dyn Settler>) -> Self {
        Self { token, settler }
    }

    /// Acknowledges the message: everything that follows from it is stored elsewhere. Returns at
    /// once; settlements reach the broker in groups.
    pub fn ack(self) {
        self.settler.settle(self.token, Settlement::Ack);
    }

    /// Returns the message to the queue, for any consumer. Some brokers count this as a delivery,
    /// so unstarted work is published again and then acked instead.
    pub fn requeue(self) {
        self.settler.settle(self.token, Settlement::Requeue);
    }

    /// Renews the lease if the backend uses leases; does nothing if a delivery lasts as long as its
    /// connection.
    pub fn extend(&self) {
        self.settler.extend(self.token);
    }
}

/// The identity of a delivery within its transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// The generation of the connection that delivered it. A settlement of an older generation is
    /// dropped, never sent.
    pub generation: u64,
    /// The number of the delivery in that generation.
    pub tag: u64,
}

/// The way in which a delivery ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// The message is acknowledged and removed.
    Ack,
    /// The message returns to the queue.
    Requeue,
}

/// A transport's side of a [`Receipt`]. Neither method blocks.
pub trait Settler: fmt::Debug + Send + Sync {
    /// Settles the delivery; does nothing if the token's generation has ended.
    fn settle(&self, token: Token, how: Settlement);
    /// Renews the lease of the delivery, if the backend uses leases.
    fn extend(&self, token: Token);
}

/// A reader that reads the journal from its start and then follows it.
#[async_trait]
pub trait JournalReader: fmt::Debug + Send {
    /// Waits for the next entry, in the order of the journal. Entries may come twice, because
    /// writers repeat them after a crash; their ids tell them apart. If the journal was deleted and
    /// created again meanwhile, it is read from its start. Cancel safe.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`] if the connection is lost for good.
    async fn next(&mut self) -> Result<JournalEntry, TransportError>;
}

/// An entry of the journal, or the mark between reading and following.
#[expect(clippy::large_enum_variant, reason = "read one at a time, never kept in numbers")]
#[derive(Clone, Debug)]
pub enum JournalEntry {
    /// A fact.
    Fact(Message),
    /// Returned once, when everything that was in the journal at the opening of the reader has been
    /// read.
    CaughtUp,
}

/// A subscription to events.
#[async_trait]
pub trait EventReader: fmt::Debug + Send {
    /// Waits for the next event. A slow reader misses the oldest events, and every reader misses
    /// those published while there is no connection. Cancel safe.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`] if the connection is lost for good.
    async fn next(&mut self) -> Result<Message, TransportError>;
}

/// The subject of an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topic {
    /// A job's progress.
    Job(Lane, JobId),
    /// A worker's heartbeat.
    Worker(Lane, WorkerId),
}

/// A filter for a subscription to events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventFilter {
    /// All events of a lane.
    Lane(Lane),
    /// The events of one job.
    Job(JobId),
}

impl EventFilter {
    /// True if the filter accepts events on `topic`.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        match (self, topic) {
            (Self::Lane(wanted), Topic::Job(lane, _) | Topic::Worker(lane, _)) => wanted == lane,
            (Self::Job(wanted), Topic::Job(_, job)) => wanted == job,
            (Self::Job(_), Topic::Worker(..)) => false,
        }
    }
}

/// The capabilities of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The failures that a stored message survives.
    pub durability: Durability,
    /// The condition on which an unsettled delivery is delivered again.
    pub redelivery: Redelivery,
    /// True if other processes can connect.
    pub shared: bool,
    /// The bound of the time for which a delivery may stay unsettled, if there is one.
    pub max_hold: Option<HoldLimit>,
    /// The size of the largest accepted body in bytes.
    pub max_message: usize,
}

/// The bound of the time for which a delivery may stay unsettled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldLimit {
    /// The time after which the broker takes the delivery back, unless it is configured otherwise.
    pub time: Duration,
    /// The name of the broker's setting for it.
    pub setting: &'static str,
}

/// The failures that a stored message survives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durability {
    /// None: messages end with the process that stores them, which is this one unless the transport
    /// is shared.
    Volatile,
    /// A crash of the broker's process.
    ProcessCrash,
    /// A power failure of the broker's machine.
    PowerLoss,
}

/// The condition on which an unsettled delivery is delivered again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Redelivery {
    /// Its consumer or its connection ends.
    OnDisconnect,
    /// Its lease is not renewed for this time.
    OnLease(Duration),
}

/// The error of a transport. Each variant asks for another reaction of the caller.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The connection, or the queue of a consumer, is lost for good: this process closed it, or the
    /// transport gave up.
    #[error("lost the connection to {transport}: {reason}")]
    Disconnected {
        /// The transport's name.
        transport: String,
        /// The message of the broker or the operating system.
        reason: String,
    },
    /// The broker does not answer. Callers try later or elsewhere.
    #[error("cannot reach the broker at {transport} ({tries} in {seconds:.1} s): {reason}", tries = tries_text(*.tries), seconds = .spent.as_secs_f64())]
    Unreachable {
        /// The transport's name.
        transport: String,
        /// The number of attempts.
        tries: u32,
        /// The time spent on the attempts.
        spent: Duration,
        /// The error of the last attempt.
        reason: String,
    },
    /// The broker refuses the login. The operator must correct the user, the password or what else
    /// the transport logs in with.
    #[error("the broker at {transport} refuses: {reason}")]
    AuthenticationFailed {
        /// The transport's name.
        transport: String,
        /// The broker's message.
        reason: String,
    },
    /// The user is logged in, but lacks the permission. The operator must grant it, or do this step
    /// for the process.
    #[error("the broker at {transport} refuses: {lacks}")]
    PermissionDenied {
        /// The transport's name.
        transport: String,
        /// The user, the missing permission and its object.
        lacks: String,
    },
    /// The TLS handshake failed: one side does not trust the other. The operator must correct the
    /// certificates or the trusted authorities.
    #[error("the TLS handshake with the broker at {transport} failed: {reason}")]
    TlsFailed {
        /// The transport's name.
        transport: String,
        /// The side without trust, the reason and a hint.
        reason: String,
    },
    /// An entity exists with other settings. The operator must delete it, or use another lane.
    #[error("{what} exists on {transport} with other settings: {difference}")]
    Mismatch {
        /// The transport's name.
        transport: String,
        /// The queue or exchange.
        what: String,
        /// Both settings.
        difference: String,
    },
    /// The transport does not support the URL or an option. The operator must correct the
    /// configuration.
    #[error("{0}")]
    Invalid(String),
}

impl TransportError {
    /// True if a later attempt may succeed without a change by an operator.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::Unreachable { .. } => true,
            Self::AuthenticationFailed { .. }
            | Self::PermissionDenied { .. }
            | Self::TlsFailed { .. }
            | Self::Mismatch { .. }
            | Self::Invalid(_) => false,
        }
    }
}

fn tries_text(tries: u32) -> String {
    if tries == 1 { "1 try".into() } else { format!("{tries} tries") }
}
