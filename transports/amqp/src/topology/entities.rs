//! The entities on the broker: exchanges, the queues of a lane, the journal.
//!
//! A process that may declare does so each time, which also repairs and compares; others only check
//! that the entities exist.
//!
//! Each kind of message has its own exchange. The default exchange is not used, because the
//! permission to write to it is one to write into any queue.

use std::fmt;

use futures::future::try_join_all;
use gristmill_shared::{Lane, Queue, QueueRole, Shards, TransportError};
use lapin::{
    Channel, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};

use super::declare_connection::DeclareSession;
use crate::failure::{self, NOT_IMPLEMENTED, Operation, PRECONDITION_FAILED};

/// Exchange of tasks: new, retried, requeued and suspect ones.
pub(crate) const WORK_EXCHANGE: &str = "gristmill.work";
/// Exchange of results and of messages about jobs for the sink.
pub(crate) const RESULTS_EXCHANGE: &str = "gristmill.results";
/// Exchange of facts. It is not named like the journal, because permissions match names: writing to
/// the exchange would then include binding and unbinding the queue.
pub(crate) const FACTS_EXCHANGE: &str = "gristmill.facts";
/// The journal: its queue and its routing key.
pub(crate) const JOURNAL_QUEUE: &str = "gristmill.journal";
/// Exchange of messages that cannot be processed.
pub(crate) const DEAD_EXCHANGE: &str = "gristmill.dead";
/// Exchange of live events, by topic.
pub(crate) const EVENTS_EXCHANGE: &str = "gristmill.events";

/// Prefix of the queues of event readers. No lane's queue has it, because a lane's name has no
/// colon.
pub(crate) const EVENTS_QUEUE_PREFIX: &str = "gristmill.events:";

/// Time for which the journal keeps a fact, unless it exceeds [`JOURNAL_MAX_BYTES`] before.
pub const JOURNAL_MAX_AGE: &str = "7D";
/// Size at which the journal drops the oldest facts, in bytes.
pub const JOURNAL_MAX_BYTES: i64 = 64 << 20;
/// Segment size of the journal, which drops whole segments and never the last.
const JOURNAL_SEGMENT_BYTES: i64 = 4 << 20;
/// Number of returns after which the broker would drop a message: never, in practice, because the
/// attempts of a task are counted elsewhere. It is set because 3.10 takes -1 for 0, and 4.x
/// defaults to 20.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// Returns the exchange that feeds a queue; the queue's name is the routing key.
pub(crate) fn exchange_for(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Tasks
        | QueueRole::Shard(_)
        | QueueRole::Suspect
        | QueueRole::Retry(_)
        | QueueRole::Requeued => WORK_EXCHANGE,
        QueueRole::Results => RESULTS_EXCHANGE,
        QueueRole::Dead => DEAD_EXCHANGE,
    }
}

/// Declares the missing entities of a lane, without the journal.
pub(crate) async fn open_lane(session: &mut DeclareSession, lane: &Lane) -> Result<(), TransportError> {
    let exchanges = [WORK_EXCHANGE, RESULTS_EXCHANGE, DEAD_EXCHANGE]
        .map(|name| BrokerEntity::Exchange(name, ExchangeKind::Direct));
    let events = BrokerEntity::Exchange(EVENTS_EXCHANGE, ExchangeKind::Topic);
    let queues = QueueRole::ALL.into_iter().map(|role| BrokerEntity::queue(&role.of(lane)));
    let entities: Vec<_> = exchanges.into_iter().chain([events]).chain(queues).collect();
    if session.may_declare() && declare_pipelined(session, &entities).await? {
        return Ok(());
    }
    for entity in entities {
        entity.ensure(session, Some(lane)).await?;
    }
    Ok(())
}

/// Declares all entities without waiting for each reply. Returns true if that succeeded; otherwise
/// the caller declares them one by one to find the refused one.
async fn declare_pipelined(
    session: &mut DeclareSession,
    entities: &[BrokerEntity],
) -> Result<bool, TransportError> {
    let channel = session.channel().await?;
    let mut declared = false;
    let declarations = async {
        try_join_all(entities.iter().map(|entity| entity.declare_on(&channel))).await?;
        declared = true;
        try_join_all(entities.iter().map(|entity| entity.bind_on(&channel))).await.map(drop)
    };
    match session.request(Operation::Unrestricted, "a lane's queues", declarations).await {
        Ok(()) => return Ok(true),
        Err(error) if channel.status().connected() => return Err(error),
        Err(TransportError::PermissionDenied { .. }) if !declared && !session.must_declare => {
            session.disable_declare()
        }
        Err(_) => {}
    }
    Ok(false)
}

/// Creates the missing shards up to `at_least`, and counts further ones up to the first that is
/// missing.
pub(crate) async fn open_shards(
    session: &mut DeclareSession,
    lane: &Lane,
    at_least: Shards,
) -> Result<Shards, TransportError> {
    for shard in at_least.queues().filter(|shard| *shard != QueueRole::Tasks) {
        BrokerEntity::queue(&shard.of(lane)).ensure(session, Some(lane)).await?;
    }
    let mut there = at_least;
    while let Some(more) = there.checked_next() {
        match BrokerEntity::queue(&more.last().of(lane)).lookup(session).await? {
            Existence::Present { .. } => there = more,
            Existence::Missing | Existence::Hidden => break,
        }
    }
    Ok(there)
}

/// Declares the journal if it is missing, and checks that it can be read. It is separate from the
/// lanes, since RabbitMQ may know a stream by name and not have it: because another process is
/// creating it, or because it was lost.
pub(crate) async fn open_journal(session: &mut DeclareSession) -> Result<(), TransportError> {
    BrokerEntity::Exchange(FACTS_EXCHANGE, ExchangeKind::Direct).ensure(session, None).await?;
    BrokerEntity::journal().ensure(session, None).await?;
    check_readable(session, JOURNAL_QUEUE).await
}

/// Checks that a stream can be read. For a stream that exists by name only, that is an internal
/// error, which closes the connection.
async fn check_readable(session: &mut DeclareSession, stream: &str) -> Result<(), TransportError> {
    let channel = session.channel().await?;
    session
        .request(Operation::Unrestricted, "a prefetch", channel.basic_qos(1, BasicQosOptions::default()))
        .await?;
    let offset = table([("x-stream-offset", text("next"))]);
    let reading = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), offset);
    session.request(Operation::Read, &format!("a reader of {stream}"), reading).await.map(drop)
}

/// An exchange or queue on the broker.
#[derive(Clone)]
pub(crate) enum BrokerEntity {
    Exchange(&'static str, ExchangeKind),
    /// A queue, with the exchange that it is bound to under its own name.
    Queue {
        name: String,
        exchange: &'static str,
        arguments: FieldTable,
    },
}

/// Result of a lookup on the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Existence {
    /// The entity exists; the numbers of ready messages and consumers are those of a queue.
    Present {
        messages: u32,
        consumers: u32,
    },
    Missing,
    /// Unknown, because RabbitMQ 4.3 shows an entity only to users with some permission on it.
    Hidden,
}

impl BrokerEntity {
    pub(crate) fn queue(queue: &Queue) -> Self {
        let (name, exchange) = (queue.to_string(), exchange_for(queue.role));
        Self::Queue { name, exchange, arguments: queue_arguments(queue) }
    }

    pub(crate) fn journal() -> Self {
        Self::Queue { name: JOURNAL_QUEUE.into(), exchange: FACTS_EXCHANGE, arguments: journal_arguments() }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Exchange(name, _) => name,
            Self::Queue { name, .. } => name,
        }
    }

    /// Ensures that the entity exists, for that lane or for all: declares it, or looks it up if
    /// declarations are forbidden.
    async fn ensure(&self, session: &mut DeclareSession, lane: Option<&Lane>) -> Result<(), TransportError> {
        if session.may_declare() {
            match self.declare(session).await {
                Err(TransportError::PermissionDenied { .. }) if !session.must_declare => {
                    session.disable_declare()
                }
                Ok(()) => return self.bind(session).await,
                refused => return refused,
            }
        }
        if self.lookup(session).await? != Existence::Missing {
            return Ok(());
        }
        match self.declare(session).await {
            Ok(()) => self.bind(session).await,
            Err(TransportError::PermissionDenied { transport, lacks }) => {
                let lane = lane.map_or("LANE", Lane::as_str);
                let hint = format!(
                    "`gristmill setup --lane {lane}`, by a user who may configure, creates all that a lane needs, with \
                     --shards N the further tasks queues too"
                );
                let lacks = format!("{self} is missing, and {lacks} (hint: {hint})");
                Err(TransportError::PermissionDenied { transport, lacks })
            }
            refused => refused,
        }
    }

    /// Creates the entity, or compares it with the existing one.
    pub(crate) async fn declare(&self, session: &mut DeclareSession) -> Result<(), TransportError> {
        let channel = session.channel().await?;
        let operation = match self {
            Self::Exchange(..) => Operation::DeclareExchange,
            Self::Queue { .. } => Operation::DeclareQueue,
        };
        declare_matching(session, operation, &self.to_string(), self.declare_on(&channel)).await
    }

    async fn bind(&self, session: &mut DeclareSession) -> Result<(), TransportError> {
        let Self::Queue { name, exchange, .. } = self else { return Ok(()) };
        let channel = session.channel().await?;
        let what = format!("the binding of {name} to {exchange}");
        declare_matching(session, Operation::Bind, &what, self.bind_on(&channel)).await
    }

    async fn declare_on(&self, channel: &Channel) -> lapin::Result<()> {
        match self.clone() {
            Self::Exchange(name, kind) => {
                let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
                channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
            }
            Self::Queue { name, arguments, .. } => {
                let options = QueueDeclareOptions { durable: true, ..Default::default() };
                channel.queue_declare(name.into(), options, arguments).await.map(drop)
            }
        }
    }

    /// Binds a queue to its exchange.
    async fn bind_on(&self, channel: &Channel) -> lapin::Result<()> {
        let Self::Queue { name, exchange, .. } = self else { return Ok(()) };
        let (queue, key, options) = (name.as_str(), name.as_str(), QueueBindOptions::default());
        channel.queue_bind(queue.into(), (*exchange).into(), key.into(), options, FieldTable::default()).await
    }

    /// Looks the entity up without creating it, which needs no permission (from 4.3 on, any).
    pub(crate) async fn lookup(&self, session: &mut DeclareSession) -> Result<Existence, TransportError> {
        let channel = session.channel().await?;
        let mut missing = false;
        let looking = async {
            let existence = match self.clone() {
                Self::Exchange(name, kind) => {
                    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
                    let existence =
                        channel.exchange_declare(name.into(), kind, options, FieldTable::default());
                    existence.await.map(|()| Existence::Present { messages: 0, consumers: 0 })
                }
                Self::Queue { name, .. } => {
                    let options = QueueDeclareOptions { passive: true, ..Default::default() };
                    let existence = channel.queue_declare(name.into(), options, FieldTable::default()).await;
                    existence.map(|queue| Existence::Present {
                        messages: queue.message_count(),
                        consumers: queue.consumer_count(),
                    })
                }
            };
            // A queue that is known but not available is NOT_FOUND too, with another text.
            existence.inspect_err(|error| missing = failure::reason(error).starts_with("NOT_FOUND - no "))
        };
        match session.request(Operation::Unrestricted, &self.to_string(), looking).await {
            Ok(existence) => Ok(existence),
            Err(_) if missing => Ok(Existence::Missing),
            Err(TransportError::PermissionDenied { .. }) => Ok(Existence::Hidden),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for BrokerEntity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name, _) => write!(f, "the exchange {name}"),
            Self::Queue { name, .. } => write!(f, "the queue {name}"),
        }
    }
}

async fn declare_matching(
    session: &DeclareSession,
    operation: Operation,
    what: &str,
    declaration: impl Future<Output = lapin::Result<()>>,
) -> Result<(), TransportError> {
    let mut refusal = None;
    let declaration = async {
        declaration.await.inspect_err(|error| {
            if matches!(failure::reply_code(error), Some(PRECONDITION_FAILED | NOT_IMPLEMENTED)) {
                refusal = Some(failure::reason(error));
            }
        })
    };
    let declared = session.request(operation, what, declaration).await;
    let Some(refusal) = refusal else { return declared };
    let transport = session.transport();
    Err(match parse_difference(&refusal) {
        Some(difference) => TransportError::Mismatch { transport, what: what.into(), difference },
        None => TransportError::Invalid(format!("{transport} cannot have {what}: {refusal}")),
    })
}

/// Extracts both values from RabbitMQ's `… inequivalent arg 'ARG' for … in vhost '/': received OURS
/// but current is THEIRS`.
fn parse_difference(refusal: &str) -> Option<String> {
    let (_, rest) = refusal.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (ours, theirs) = rest.split_once("received ")?.1.split_once(" but current is ")?;
    // A value is `'5'`, `the value '5' of type 'signedint'` or `none`, depending on the other side.
    let value = |text: &'_ str| text.split('\'').nth(1).unwrap_or(text).to_owned();
    Some(format!("{argument} is {} there and would be {} here", value(theirs), value(ours)))
}

fn queue_arguments(queue: &Queue) -> FieldTable {
    let spec = queue.role.spec();
    let mut arguments = table([
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", number(DELIVERY_LIMIT)),
        // Drop-head, the default, would lose tasks; and at-least-once dead-lettering requires this.
        ("x-overflow", text("reject-publish")),
    ]);
    let mut add = |name: &str, value| {
        arguments.insert(name.into(), value);
    };
    if let Some(messages) = spec.max_messages {
        add("x-max-length", number(messages));
    }
    if let Some(bytes) = spec.max_bytes {
        add("x-max-length-bytes", number(bytes));
    }
    if let Some((delay, _)) = spec.delay {
        add("x-message-ttl", number(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)));
    }
    if let Some(target) = spec.delay.map(|(_, to)| to).or(spec.dead_letters_to) {
        add("x-dead-letter-exchange", text(exchange_for(target)));
        add("x-dead-letter-routing-key", text(&target.of(&queue.lane).to_string()));
        add("x-dead-letter-strategy", text("at-least-once"));
    }
    if spec.single_active_consumer {
        add("x-single-active-consumer", AMQPValue::Boolean(true));
    }
    arguments
}

fn journal_arguments() -> FieldTable {
    table([
        ("x-queue-type", text("stream")),
        ("x-max-age", text(JOURNAL_MAX_AGE)),
        ("x-max-length-bytes", number(JOURNAL_MAX_BYTES)),
        ("x-stream-max-segment-size-bytes", number(JOURNAL_SEGMENT_BYTES)),
    ])
}

pub(crate) fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

pub(crate) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub(crate) fn number(number: impl TryInto<i64>) -> AMQPValue {
    AMQPValue::LongLongInt(number.try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use gristmill_shared::RetryDelay;

    use super::*;

    fn arguments(role: QueueRole) -> FieldTable {
        queue_arguments(&role.of(&Lane::default()))
    }

    fn get(role: QueueRole, name: &str) -> Option<AMQPValue> {
        arguments(role).inner().get(name).cloned()
    }

    #[test]
    fn queues_override_broker_defaults() {
        for role in QueueRole::ALL {
            assert_eq!(get(role, "x-queue-type"), Some(text("quorum")), "{role:?}");
            assert_eq!(get(role, "x-delivery-limit"), Some(number(DELIVERY_LIMIT)), "{role:?}");
            assert_eq!(get(role, "x-overflow"), Some(text("reject-publish")), "{role:?}");
        }
    }

    #[test]
    fn queue_spec_sets_arguments() {
        assert_eq!(get(QueueRole::Tasks, "x-max-length"), Some(number(1_000)));
        assert_eq!(get(QueueRole::Tasks, "x-dead-letter-exchange"), Some(text("gristmill.dead")));
        assert_eq!(get(QueueRole::Tasks, "x-dead-letter-routing-key"), Some(text("gristmill.default.dead")));
        assert_eq!(get(QueueRole::Results, "x-single-active-consumer"), Some(AMQPValue::Boolean(true)));
        assert_eq!(get(QueueRole::Dead, "x-dead-letter-exchange"), None);
        let retry = QueueRole::Retry(RetryDelay::TenSeconds);
        assert_eq!(get(retry, "x-message-ttl"), Some(number(10_000)));
        assert_eq!(get(retry, "x-dead-letter-exchange"), Some(text("gristmill.work")));
        assert_eq!(get(retry, "x-dead-letter-routing-key"), Some(text("gristmill.default.again")));
        assert_eq!(get(retry, "x-dead-letter-strategy"), Some(text("at-least-once")));
    }

    #[test]
    fn mismatch_shows_both_values() {
        let refusal = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': \
                    received '1000' but current is '5'";
        assert_eq!(parse_difference(refusal).unwrap(), "x-max-length is 5 there and would be 1000 here");
        let refusal = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': \
                    received none but current is the value '5' of type 'signedint'";
        assert_eq!(parse_difference(refusal).unwrap(), "x-message-ttl is 5 there and would be none here");
        assert_eq!(parse_difference("PRECONDITION_FAILED - something else"), None);
    }
}
