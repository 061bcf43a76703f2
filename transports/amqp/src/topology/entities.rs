//! What stands on the broker: exchanges, the queues of a lane, the journal.
//!
//! Whoever may declare does so, each time, which also mends and compares; whoever may not only looks.
//!
//! Everything is published through an exchange of its own kind, never through the default one, because whoever may
//! write to the default exchange may write into any queue.

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

use crate::{
    failure::{self, NOT_IMPLEMENTED, PRECONDITION_FAILED, Wish},
    topology::declare_connection::Visit,
};

/// Tasks, on all their ways.
pub(crate) const WORK: &str = "gristmill.work";
/// Results, and what is told to the sink about jobs.
pub(crate) const RESULTS: &str = "gristmill.results";
/// What the journal gets. Not its name: a right to write to the exchange would be one to bind and unbind the queue.
pub(crate) const FACTS: &str = "gristmill.facts";
/// The journal: its queue and routing key.
pub(crate) const JOURNAL: &str = "gristmill.journal";
/// Messages that are none of ours.
pub(crate) const DEAD: &str = "gristmill.dead";
/// Live news, by topic.
pub(crate) const EVENTS: &str = "gristmill.events";

/// What the queues of listeners begin with. No lane's queue does: a lane's name has no colon.
pub(crate) const EVENTS_QUEUE: &str = "gristmill.events:";

/// For how long the journal keeps a fact, unless it grows beyond [`JOURNAL_MAX_BYTES`] before.
pub const JOURNAL_MAX_AGE: &str = "7D";
/// How large the journal may grow before it forgets the oldest facts, in bytes.
pub const JOURNAL_MAX_BYTES: i64 = 64 << 20;
/// The journal forgets by whole segments of this size, and never the last.
const JOURNAL_SEGMENT_BYTES: i64 = 4 << 20;
/// How often a message may come back before the broker gives it up: never, in practice. What became of a task is ours
/// to count. It must be said because 3.10 takes -1 for 0, and 4.x takes silence for 20.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// Through which exchange a queue gets its messages; its name is the routing key.
pub(crate) fn exchange_of(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Tasks
        | QueueRole::Shard(_)
        | QueueRole::Suspect
        | QueueRole::Retry(_)
        | QueueRole::Again => WORK,
        QueueRole::Results => RESULTS,
        QueueRole::Dead => DEAD,
    }
}

/// Declares what is missing, but for the journal.
pub(crate) async fn open_lane(visit: &mut Visit, lane: &Lane) -> Result<(), TransportError> {
    let exchanges = [WORK, RESULTS, DEAD].map(|name| Thing::Exchange(name, ExchangeKind::Direct));
    let events = Thing::Exchange(EVENTS, ExchangeKind::Topic);
    let queues = QueueRole::ALL.into_iter().map(|role| Thing::queue(&role.of(lane)));
    let things: Vec<_> = exchanges.into_iter().chain([events]).chain(queues).collect();
    if visit.declares() && declare_at_once(visit, &things).await? {
        return Ok(());
    }
    for thing in things {
        thing.provide(visit, Some(lane)).await?;
    }
    Ok(())
}

/// Declares them all without waiting for one answer after the other; answers whether that went well. If it did not, who asks
/// one after the other learns which of them was refused.
async fn declare_at_once(visit: &mut Visit, things: &[Thing]) -> Result<bool, TransportError> {
    let channel = visit.channel().await?;
    let mut declared = false;
    let declaring = async {
        try_join_all(things.iter().map(|thing| thing.declaring(&channel))).await?;
        declared = true;
        try_join_all(things.iter().map(|thing| thing.binding(&channel))).await.map(drop)
    };
    match visit.ask(Wish::Free, "a lane's queues", declaring).await {
        Ok(()) => return Ok(true),
        Err(silence) if channel.status().connected() => return Err(silence),
        Err(TransportError::Forbidden { .. }) if !declared && !visit.must_declare => visit.declares_not(),
        Err(_) => {}
    }
    Ok(false)
}

/// Makes the shards that are missing, and counts further ones up to the first that is missing.
pub(crate) async fn open_shards(
    visit: &mut Visit,
    lane: &Lane,
    at_least: Shards,
) -> Result<Shards, TransportError> {
    for shard in at_least.queues().filter(|shard| *shard != QueueRole::Tasks) {
        Thing::queue(&shard.of(lane)).provide(visit, Some(lane)).await?;
    }
    let mut there = at_least;
    while let Some(more) = there.one_more() {
        match Thing::queue(&more.last().of(lane)).look(visit).await? {
            Seen::There { .. } => there = more,
            Seen::Missing | Seen::Hidden => break,
        }
    }
    Ok(there)
}

/// Declares the journal if it is missing, and sees whether it can be read. Apart from the lanes, since RabbitMQ may
/// know a stream by name and yet not have it: one that somebody else is just making, or one that it lost.
pub(crate) async fn open_journal(visit: &mut Visit) -> Result<(), TransportError> {
    Thing::Exchange(FACTS, ExchangeKind::Direct).provide(visit, None).await?;
    Thing::journal().provide(visit, None).await?;
    can_be_read(visit, JOURNAL).await
}

/// Reading a stream that is there by name only is an internal error, which closes the connection.
async fn can_be_read(visit: &mut Visit, stream: &str) -> Result<(), TransportError> {
    let channel = visit.channel().await?;
    visit.ask(Wish::Free, "a prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
    let offset = table([("x-stream-offset", text("next"))]);
    let reading = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), offset);
    visit.ask(Wish::Read, &format!("a reader of {stream}"), reading).await.map(drop)
}

/// Something that stands on the broker.
#[derive(Clone)]
pub(crate) enum Thing {
    Exchange(&'static str, ExchangeKind),
    /// With the exchange that it is bound to under its own name.
    Queue {
        name: String,
        exchange: &'static str,
        arguments: FieldTable,
    },
}

/// How a thing was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// With so many messages that wait and so many consumers, if it is a queue.
    There {
        messages: u32,
        consumers: u32,
    },
    Missing,
    /// It is none of ours to know: RabbitMQ 4.3 shows a thing only to whoever has some right on it.
    Hidden,
}

impl Thing {
    pub(crate) fn queue(queue: &Queue) -> Self {
        let (name, exchange) = (queue.to_string(), exchange_of(queue.role));
        Self::Queue { name, exchange, arguments: queue_arguments(queue) }
    }

    pub(crate) fn journal() -> Self {
        Self::Queue { name: JOURNAL.into(), exchange: FACTS, arguments: journal_arguments() }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Exchange(name, _) => name,
            Self::Queue { name, .. } => name,
        }
    }

    /// Sees to it that it is there, for that lane or for all: declares it, or, where we may not, looks.
    async fn provide(&self, visit: &mut Visit, lane: Option<&Lane>) -> Result<(), TransportError> {
        if visit.declares() {
            match self.declare(visit).await {
                Err(TransportError::Forbidden { .. }) if !visit.must_declare => visit.declares_not(),
                Ok(()) => return self.bind(visit).await,
                refused => return refused,
            }
        }
        if self.look(visit).await? != Seen::Missing {
            return Ok(());
        }
        match self.declare(visit).await {
            Ok(()) => self.bind(visit).await,
            Err(TransportError::Forbidden { transport, lacks }) => {
                let lane = lane.map_or("LANE", Lane::as_str);
                let hint = format!(
                    "`gristmill setup --lane {lane}`, by a user who may configure, makes all that a lane needs, with \
                     --shards N the further tasks queues too"
                );
                let lacks = format!("{self} is missing, and {lacks} (hint: {hint})");
                Err(TransportError::Forbidden { transport, lacks })
            }
            refused => refused,
        }
    }

    /// Makes it, or compares it with what is there.
    pub(crate) async fn declare(&self, visit: &mut Visit) -> Result<(), TransportError> {
        let channel = visit.channel().await?;
        let wish = match self {
            Self::Exchange(..) => Wish::DeclareExchange,
            Self::Queue { .. } => Wish::DeclareQueue,
        };
        agree(visit, wish, &self.to_string(), self.declaring(&channel)).await
    }

    async fn bind(&self, visit: &mut Visit) -> Result<(), TransportError> {
        let Self::Queue { name, exchange, .. } = self else { return Ok(()) };
        let channel = visit.channel().await?;
        let what = format!("the binding of {name} to {exchange}");
        agree(visit, Wish::Bind, &what, self.binding(&channel)).await
    }

    async fn declaring(&self, channel: &Channel) -> lapin::Result<()> {
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
    async fn binding(&self, channel: &Channel) -> lapin::Result<()> {
        let Self::Queue { name, exchange, .. } = self else { return Ok(()) };
        let (queue, key, options) = (name.as_str(), name.as_str(), QueueBindOptions::default());
        channel.queue_bind(queue.into(), (*exchange).into(), key.into(), options, FieldTable::default()).await
    }

    /// Looks whether it is there, without making it, which takes no right (or, from 4.3 on, any).
    pub(crate) async fn look(&self, visit: &mut Visit) -> Result<Seen, TransportError> {
        let channel = visit.channel().await?;
        let mut missing = false;
        let looking = async {
            let seen = match self.clone() {
                Self::Exchange(name, kind) => {
                    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
                    let seen = channel.exchange_declare(name.into(), kind, options, FieldTable::default());
                    seen.await.map(|()| Seen::There { messages: 0, consumers: 0 })
                }
                Self::Queue { name, .. } => {
                    let options = QueueDeclareOptions { passive: true, ..Default::default() };
                    let seen = channel.queue_declare(name.into(), options, FieldTable::default()).await;
                    seen.map(|queue| Seen::There {
                        messages: queue.message_count(),
                        consumers: queue.consumer_count(),
                    })
                }
            };
            // A queue that it knows and does not have is NOT_FOUND too, in other words.
            seen.inspect_err(|error| missing = failure::reason(error).starts_with("NOT_FOUND - no "))
        };
        match visit.ask(Wish::Free, &self.to_string(), looking).await {
            Ok(seen) => Ok(seen),
            Err(_) if missing => Ok(Seen::Missing),
            Err(TransportError::Forbidden { .. }) => Ok(Seen::Hidden),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name, _) => write!(f, "the exchange {name}"),
            Self::Queue { name, .. } => write!(f, "the queue {name}"),
        }
    }
}

async fn agree(
    visit: &Visit,
    wish: Wish,
    what: &str,
    declaration: impl Future<Output = lapin::Result<()>>,
) -> Result<(), TransportError> {
    let mut refusal = None;
    let declaration = async {
        declaration.await.inspect_err(|error| {
            if matches!(failure::code(error), Some(PRECONDITION_FAILED | NOT_IMPLEMENTED)) {
                refusal = Some(failure::reason(error));
            }
        })
    };
    let declared = visit.ask(wish, what, declaration).await;
    let Some(refusal) = refusal else { return declared };
    let transport = visit.transport();
    Err(match difference(&refusal) {
        Some(difference) => TransportError::Mismatch { transport, what: what.into(), difference },
        None => TransportError::Invalid(format!("{transport} cannot have {what}: {refusal}")),
    })
}

/// Both sides, out of RabbitMQ's `… inequivalent arg 'ARG' for … in vhost '/': received OURS but current is THEIRS`.
fn difference(refusal: &str) -> Option<String> {
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
        // Drop-head, the default, would lose tasks; and what is dead-lettered at least once must have it.
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
    if let Some((delay, _)) = spec.ripens {
        add("x-message-ttl", number(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)));
    }
    if let Some(target) = spec.ripens.map(|(_, to)| to).or(spec.dead_letters_to) {
        add("x-dead-letter-exchange", text(exchange_of(target)));
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
    fn every_queue_is_safe_from_the_brokers_defaults() {
        for role in QueueRole::ALL {
            assert_eq!(get(role, "x-queue-type"), Some(text("quorum")), "{role:?}");
            assert_eq!(get(role, "x-delivery-limit"), Some(number(DELIVERY_LIMIT)), "{role:?}");
            assert_eq!(get(role, "x-overflow"), Some(text("reject-publish")), "{role:?}");
        }
    }

    #[test]
    fn what_a_queue_promises_becomes_its_arguments() {
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
    fn a_mismatch_shows_both_sides() {
        let told = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': \
                    received '1000' but current is '5'";
        assert_eq!(difference(told).unwrap(), "x-max-length is 5 there and would be 1000 here");
        let told = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': \
                    received none but current is the value '5' of type 'signedint'";
        assert_eq!(difference(told).unwrap(), "x-message-ttl is 5 there and would be none here");
        assert_eq!(difference("PRECONDITION_FAILED - something else"), None);
    }
}
