//! The seam between the roles and a broker: three primitives, and nothing of any client library.
//!
//! | primitive | semantics | for |
//! |---|---|---|
//! | work queue | competing consumers, each message settled once | task batches, results |
//! | log | kept, many readers, each from the start | the journal |
//! | topic | live, pub/sub, lost if nobody listens | events |

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{JobId, Lane, Message, Queue, Shards, WorkerId};

/// A connection to a broker, or something that behaves like one. Shared by all parts of a process.
///
/// A transport may come back by itself when its connection is lost. Then everything that came from it goes on, and only
/// takes longer: what is asked waits, publishes without an answer are made again, consumers take messages again (what
/// was unsettled is delivered again, and its old receipts do nothing), a journal reader goes on where it was, an event
/// reader misses what was told meanwhile. [`TransportError::Disconnected`] and [`Published::Unknown`] then mean that it
/// is gone for good.
///
/// An implementor writes every method; none has a default. The conformance suite (feature `conformance`) says what
/// each must do. `Display` names the instance for errors and logs, without its password.
#[async_trait]
pub trait Transport: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// What this backend can do. Constant for the life of the transport.
    fn capabilities(&self) -> Capabilities;

    /// Creates the lane's queues, the journal and the events topic where they are missing. Idempotent; every role
    /// calls it before anything else. Whoever may create nothing only looks whether all is there.
    ///
    /// # Errors
    /// [`TransportError::Mismatch`] if something exists with other settings, and we may create such things;
    /// [`TransportError::Forbidden`] if something is missing, and we may not create it.
    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError>;

    /// Creates the shards of a lane's tasks queue up to `at_least` so many, where they are missing, and says how many there
    /// are, without a gap: somebody else may have made more. [`Shards::ONE`] creates nothing, and asks. Idempotent; whoever
    /// uses shards calls it after [`Transport::open_lane`].
    ///
    /// Only who takes from all shards, or sees to it that somebody does, may create any: in one that nobody takes from, tasks
    /// would wait for ever.
    ///
    /// # Errors
    /// [`TransportError::Mismatch`] if something exists with other settings.
    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError>;

    /// A publisher; all of a process's publishers may share one connection.
    ///
    /// # Errors
    /// If the connection is gone for good.
    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError>;

    /// Starts to take messages from a queue: at most `prefetch` of them are unsettled at any time.
    ///
    /// # Errors
    /// If the connection is gone for good, or the queue is.
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError>;

    /// Reads the journal from its start, and then follows it.
    ///
    /// # Errors
    /// If the connection is gone for good.
    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError>;

    /// Listens to events from now on.
    ///
    /// # Errors
    /// If the connection is gone for good.
    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError>;

    /// How the transport is just now, and from now on. For people who wait, and for health checks; nothing else needs to
    /// look, since whatever is asked meanwhile waits by itself.
    fn health(&self) -> watch::Receiver<Health>;

    /// Hands on what was settled and closes the connections. What is unsettled is delivered again, to others.
    /// Everything that came from this transport fails with [`TransportError::Disconnected`] afterwards.
    async fn close(&self);
}

/// How a transport is just now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// Connected, and the broker takes messages.
    Well,
    /// Connected, but the broker takes no messages, and why: it is low on memory, for instance. It still delivers.
    Blocked(String),
    /// Connected, and the broker takes messages, but something that it delivers to us ended and cannot be begun again, and
    /// why: its queue was deleted, for instance. It is tried again.
    Interrupted(String),
    /// The connection is lost, and why; it is made again.
    Away(String),
    /// It is gone for good.
    Closed,
}

/// Hands messages to the broker.
#[async_trait]
pub trait Publisher: fmt::Debug + Send + Sync {
    /// Publishes a batch and answers once the broker has said of every message what became of it, in the order of
    /// the batch. Waits while the bounded window of unconfirmed messages is full, or while the broker blocks.
    ///
    /// Several calls may be under way at once. Dropping the future withdraws nothing: the messages may still be
    /// stored.
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published>;
}

/// A message and where it goes.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub to: Address,
    /// What.
    pub message: Message,
}

/// Where a message goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A work queue. Durable, and returned if the queue is missing.
    Queue(Queue),
    /// The journal. Durable.
    Journal,
    /// Whoever listens now.
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

/// What became of a published message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Published {
    /// The broker has taken responsibility for it. (For events: it was passed to whoever listens.)
    Stored,
    /// The broker refused it, because the queue is full or for a trouble of its own. It is not stored. Try again
    /// later.
    Rejected,
    /// There is no such queue. It is not stored.
    Unroutable,
    /// The connection went for good before the answer came: stored or not, nobody knows. Publishing it again may make
    /// a duplicate.
    Unknown,
    /// It can never be published, and why: it is larger than the broker takes. Another message may fare better.
    Refused(String),
    /// We may not publish there, and what the broker said. No message fares better until somebody changes that.
    Denied(String),
}

/// Takes messages from one queue. Dropping it hands back what is unsettled.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// Waits for at least one delivery and returns what is there, at most `max` of them. An empty vector means that
    /// [`Consumer::stop`] was called and everything delivered before has been returned.
    ///
    /// Cancel safe: a dropped call loses no delivery.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`] if the connection or the queue went for good; every later call says so too.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError>;

    /// Asks the broker for no further deliveries. Those that are here already are still returned and can be settled,
    /// unless the connection is lost meanwhile: a stopped consumer does not come back.
    ///
    /// # Errors
    /// If the connection is gone for good.
    async fn stop(&mut self) -> Result<(), TransportError>;

    /// Hands all settlements so far to the broker, then hands back what is unsettled.
    async fn close(self: Box<Self>);
}

/// A message that the broker has entrusted to us until we settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How often it was delivered before, to somebody who did not settle it. That alone does not mean that somebody
    /// died. A backend that cannot count says 1 for every number above 0.
    pub deliveries_before: u32,
    /// The right to settle it.
    pub receipt: Receipt,
}

impl Delivery {
    /// It was delivered before, to somebody who did not settle it.
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.deliveries_before > 0
    }
}

/// The right to settle one delivery, once: settling consumes it.
///
/// Dropping a receipt settles nothing: the message stays with its consumer until that goes, and is then delivered
/// again. A receipt outlives its connection; settling it then does nothing, because the broker has already given
/// the message to somebody else.
#[derive(Debug)]
#[must_use = "an unsettled delivery counts against the prefetch"]
pub struct Receipt {
    token: Token,
    settler: Arc<dyn Settler>,
}

impl Receipt {
    /// For transports: the right to settle what `token` names.
    pub fn new(token: Token, settler: Arc<dyn Settler>) -> Self {
        Self { token, settler }
    }

    /// The message is dealt with: everything that follows from it is stored elsewhere. Returns at once; settlements
    /// reach the broker in groups.
    pub fn ack(self) {
        self.settler.settle(self.token, Settlement::Ack);
    }

    /// Gives the message back to the queue, for anybody. Costs the message a delivery on some brokers, so work
    /// that was not begun is published again and then acked instead.
    pub fn requeue(self) {
        self.settler.settle(self.token, Settlement::Requeue);
    }

    /// Renews the lease where a backend works by leases; does nothing where a delivery lasts as long as its
    /// connection.
    pub fn extend(&self) {
        self.settler.extend(self.token);
    }
}

/// What a transport knows a delivery by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// Which connection delivered it. A settlement of an older generation is dropped, never sent.
    pub generation: u64,
    /// Its number in that generation.
    pub tag: u64,
}

/// How a delivery ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// Dealt with.
    Ack,
    /// Back to the queue.
    Requeue,
}

/// A transport's side of a [`Receipt`]. Neither method blocks.
pub trait Settler: fmt::Debug + Send + Sync {
    /// Settles, or does nothing if the token's generation is over.
    fn settle(&self, token: Token, how: Settlement);
    /// Renews a lease, where there are leases.
    fn extend(&self, token: Token);
}

/// Reads the journal from its start, and then follows it.
#[async_trait]
pub trait JournalReader: fmt::Debug + Send {
    /// The next entry, in the order of the journal. Entries may come twice, since whoever writes repeats after a
    /// crash; they have ids to tell. If the journal was deleted and made anew meanwhile, it is read from its start.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`] if the connection went for good.
    async fn next(&mut self) -> Result<JournalEntry, TransportError>;
}

/// What a journal reader gives.
#[expect(clippy::large_enum_variant, reason = "read one at a time, never kept in numbers")]
#[derive(Clone, Debug)]
pub enum JournalEntry {
    /// A fact.
    Fact(Message),
    /// Once: everything that was in the journal when the reader was opened has been read.
    CaughtUp,
}

/// Listens to events.
#[async_trait]
pub trait EventReader: fmt::Debug + Send {
    /// The next event. A slow reader misses the oldest, and what is told while there is no connection. Cancel safe.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`] if the connection went for good.
    async fn next(&mut self) -> Result<Message, TransportError>;
}

/// What an event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topic {
    /// A job's progress.
    Job(Lane, JobId),
    /// A worker's heartbeat.
    Worker(Lane, WorkerId),
}

/// Which events to listen to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventFilter {
    /// All of a lane.
    Lane(Lane),
    /// One job's.
    Job(JobId),
}

impl EventFilter {
    /// Whether an event on `topic` is wanted.
    #[must_use]
    pub fn wants(&self, topic: &Topic) -> bool {
        match (self, topic) {
            (Self::Lane(wanted), Topic::Job(lane, _) | Topic::Worker(lane, _)) => wanted == lane,
            (Self::Job(wanted), Topic::Job(_, job)) => wanted == job,
            (Self::Job(_), Topic::Worker(..)) => false,
        }
    }
}

/// What a backend can do; what it cannot do is said before a job starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// What a stored message survives.
    pub durability: Durability,
    /// When an unsettled delivery comes again.
    pub redelivery: Redelivery,
    /// Whether other processes can join.
    pub shared: bool,
    /// How long a delivery may stay unsettled before the broker takes it back, if there is such a bound.
    pub max_hold: Option<Duration>,
    /// The largest body it takes, in bytes.
    pub max_message: usize,
}

/// What a stored message survives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durability {
    /// Nothing: it lives in this process.
    Volatile,
    /// The broker's process being killed.
    ProcessCrash,
    /// The broker's machine losing power.
    PowerLoss,
}

/// When an unsettled delivery comes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Redelivery {
    /// When its consumer or its connection goes.
    OnDisconnect,
    /// When its lease is not renewed for this long.
    OnLease(Duration),
}

/// Why a transport cannot do what it was asked. Grouped by what the caller does next.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The connection, or the queue under a consumer, went for good: it was closed at this end, or the transport gave
    /// up.
    #[error("lost the connection to {transport}: {reason}")]
    Disconnected {
        /// The transport's name.
        transport: String,
        /// What the broker or the operating system said.
        reason: String,
    },
    /// Nobody answers there. Try later, or elsewhere.
    #[error("cannot reach the broker at {transport} ({tries} in {seconds:.1} s): {reason}", tries = tries_text(*.tries), seconds = .spent.as_secs_f64())]
    Unreachable {
        /// The transport's name.
        transport: String,
        /// How often it was tried.
        tries: u32,
        /// For how long.
        spent: Duration,
        /// What the last try ended in.
        reason: String,
    },
    /// The broker is there but does not let us in. Mend the user, the password or the virtual host.
    #[error("the broker at {transport} refuses: {reason}")]
    Denied {
        /// The transport's name.
        transport: String,
        /// What the broker said.
        reason: String,
    },
    /// We are let in, but may not do this. Somebody must give the user the right, or do it in our stead.
    #[error("the broker at {transport} refuses: {lacks}")]
    Forbidden {
        /// The transport's name.
        transport: String,
        /// Who lacks which right on what.
        lacks: String,
    },
    /// We and the broker do not trust each other. Mend the certificates, or those who are trusted.
    #[error("no trust between us and the broker at {transport}: {reason}")]
    Untrusted {
        /// The transport's name.
        transport: String,
        /// Who does not trust whom, why, and a hint.
        reason: String,
    },
    /// Something exists with other settings. Delete it there, or use another lane.
    #[error("{what} exists on {transport} with other settings: {difference}")]
    Mismatch {
        /// The transport's name.
        transport: String,
        /// The queue or exchange.
        what: String,
        /// Both settings.
        difference: String,
    },
    /// The URL, or a wish, that this transport cannot fulfil. Mend the configuration.
    #[error("{0}")]
    Invalid(String),
}

impl TransportError {
    /// Whether trying again later may help without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::Unreachable { .. } => true,
            Self::Denied { .. }
            | Self::Forbidden { .. }
            | Self::Untrusted { .. }
            | Self::Mismatch { .. }
            | Self::Invalid(_) => false,
        }
    }
}

fn tries_text(tries: u32) -> String {
    if tries == 1 { "1 try".into() } else { format!("{tries} tries") }
}
