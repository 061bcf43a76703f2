//! What stands on the broker: exchanges, the queues of a lane, the journal.
//!
//! Everything is published through an exchange of its own kind, never through the default one, because whoever may
//! write to the default exchange may write into any queue.

use gristmill_shared::{Lane, Queue, QueueRole, Shards, TransportError};
use lapin::{
    ExchangeKind,
    options::{
        BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::{
    failure::{self, NOT_FOUND, NOT_IMPLEMENTED, PRECONDITION_FAILED},
    visit::Visit,
};

/// Tasks, on all their ways.
pub(crate) const WORK: &str = "gristmill.work";
/// Results, and what is told to the sink about jobs.
pub(crate) const RESULTS: &str = "gristmill.results";
/// The journal's exchange, queue and routing key.
pub(crate) const JOURNAL: &str = "gristmill.journal";
/// Messages that are none of ours.
pub(crate) const DEAD: &str = "gristmill.dead";
/// Live news, by topic.
pub(crate) const EVENTS: &str = "gristmill.events";

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

/// Declares what is missing, but for the journal. A refusal closes the channel, so it is one of its own.
pub(crate) async fn open_lane(visit: &Visit, lane: &Lane) -> Result<(), TransportError> {
    let declare = Declare(visit);
    for exchange in [WORK, RESULTS, DEAD] {
        declare.exchange(exchange, ExchangeKind::Direct).await?;
    }
    declare.exchange(EVENTS, ExchangeKind::Topic).await?;
    for role in QueueRole::ALL {
        declare.of_lane(&role.of(lane)).await?;
    }
    Ok(())
}

/// Declares the shards that are missing, and counts further ones up to the first that is missing. The visit is over
/// then: a queue that is not there closes the channel of who asks for it.
pub(crate) async fn open_shards(
    visit: &Visit,
    lane: &Lane,
    at_least: Shards,
) -> Result<Shards, TransportError> {
    let declare = Declare(visit);
    for shard in at_least.queues().filter(|shard| *shard != QueueRole::Tasks) {
        declare.of_lane(&shard.of(lane)).await?;
    }
    let mut there = at_least;
    while let Some(more) = there.one_more() {
        if !declare.is_there(&more.last().of(lane)).await? {
            break;
        }
        there = more;
    }
    Ok(there)
}

/// Declares the journal if it is missing, and sees whether it can be read. Apart from the lanes, since RabbitMQ may
/// know a stream by name and yet not have it: one that somebody else is just making, or one that it lost.
pub(crate) async fn open_journal(visit: &Visit) -> Result<(), TransportError> {
    let declare = Declare(visit);
    declare.exchange(JOURNAL, ExchangeKind::Direct).await?;
    declare.queue(JOURNAL, JOURNAL, journal_arguments()).await?;
    declare.can_be_read(JOURNAL).await
}

struct Declare<'a>(&'a Visit);

impl Declare<'_> {
    async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<(), TransportError> {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared = self.0.channel.exchange_declare(name.into(), kind, options, FieldTable::default());
        self.agree(&format!("the exchange {name}"), declared).await
    }

    /// Reading a stream that is there by name only is an internal error, which closes the connection.
    async fn can_be_read(&self, stream: &str) -> Result<(), TransportError> {
        let channel = &self.0.channel;
        self.0.ask("a prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
        let offset = table([("x-stream-offset", text("next"))]);
        let reading = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), offset);
        self.0.ask(&format!("a reader of {stream}"), reading).await.map(drop)
    }

    async fn of_lane(&self, queue: &Queue) -> Result<(), TransportError> {
        self.queue(&queue.to_string(), exchange_of(queue.role), queue_arguments(queue)).await
    }

    async fn is_there(&self, queue: &Queue) -> Result<bool, TransportError> {
        let name = queue.to_string();
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let asked = async {
            match self.0.channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await {
                Ok(_) => Ok(true),
                Err(error) if failure::code(&error) == Some(NOT_FOUND) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.0.ask(&format!("the queue {name}"), asked).await
    }

    async fn queue(&self, name: &str, exchange: &str, arguments: FieldTable) -> Result<(), TransportError> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let declared =
            async { self.0.channel.queue_declare(name.into(), options, arguments).await.map(drop) };
        self.agree(&format!("the queue {name}"), declared).await?;
        let options = QueueBindOptions::default();
        let bound = self.0.channel.queue_bind(
            name.into(),
            exchange.into(),
            name.into(),
            options,
            FieldTable::default(),
        );
        self.agree(&format!("the binding of {name} to {exchange}"), bound).await
    }

    async fn agree(
        &self,
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
        let declared = self.0.ask(what, declaration).await;
        let Some(refusal) = refusal else { return declared };
        let transport = self.0.transport();
        Err(match difference(&refusal) {
            Some(difference) => TransportError::Mismatch { transport, what: what.into(), difference },
            None => TransportError::Invalid(format!("{transport} cannot have {what}: {refusal}")),
        })
    }
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
