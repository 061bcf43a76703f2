//! A message and its AMQP properties, both ways.
//!
//! On the way in nothing fails: messages may come from other languages or from somebody's hand. What is missing or of
//! an odd type gets its default, and what it means is for the wire module to say.

use bytes::Bytes;
use gristmill_shared::{
    Headers, Message,
    wire::{REASON_MAX_BYTES, clip_reason},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, MAX_SHORT_STRING_LENGTH, ShortString},
};

use crate::topology::{number, text};

/// How large all texts in a message's headers may be together. They must fit into one frame.
const HEADERS_MAX_BYTES: usize = 64 << 10;
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

const ATTEMPT: &str = "gm-attempt";
const LOSS: &str = "gm-loss";
const RELEASED_HEADER: &str = "gm-released";
const UNDECODABLE_HEADER: &str = "gm-undecodable";
const DELAY_HEADER: &str = "gm-delay";
const DELIVERY_COUNT: &str = "x-delivery-count";
const REASON: &str = "gm-reason";
const ORIGIN: &str = "gm-origin";
const TRACEPARENT: &str = "traceparent";

/// Whether AMQP has room for all that a message says of itself.
///
/// # Errors
/// What it has no room for.
pub(crate) fn fits(message: &Message) -> Result<(), String> {
    let Message { id, form, app, content_type, content_encoding, headers, .. } = message;
    for (what, text) in [
        ("message id", id),
        ("form", form),
        ("app", app),
        ("content type", content_type),
        ("content encoding", content_encoding),
    ] {
        if text.len() > MAX_SHORT_STRING_LENGTH {
            return Err(format!(
                "its {what} is {} bytes long, and AMQP takes at most {MAX_SHORT_STRING_LENGTH}",
                text.len()
            ));
        }
    }
    let size: usize = texts(headers).map(|(_, text)| text.len()).sum();
    if size > HEADERS_MAX_BYTES {
        return Err(format!(
            "its headers have {size} bytes of text, and at most {HEADERS_MAX_BYTES} are sent"
        ));
    }
    Ok(())
}

/// The properties of a message to be published, which [fits]. What has its default value is left out. The timestamp is in
/// seconds.
pub(crate) fn outgoing(message: &Message, durable: bool) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(if durable { PERSISTENT } else { TRANSIENT })
        .with_timestamp(message.timestamp_ms / 1_000)
        .with_headers(table_of(&message.headers));
    if let Some(id) = short(&message.id) {
        properties = properties.with_message_id(id);
    }
    if let Some(form) = short(&message.form) {
        properties = properties.with_type(form);
    }
    if let Some(job) = message.job {
        properties = properties.with_correlation_id(job.to_string().into());
    }
    if let Some(app) = short(&message.app) {
        properties = properties.with_app_id(app);
    }
    if let Some(content_type) = short(&message.content_type) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(encoding) = short(&message.content_encoding) {
        properties = properties.with_content_encoding(encoding);
    }
    properties
}

/// Nothing if it is empty, or does not fit.
fn short(text: &str) -> Option<ShortString> {
    if text.is_empty() { None } else { ShortString::try_new(text).ok() }
}

fn table_of(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    let numbers = [
        (ATTEMPT, headers.attempt),
        (LOSS, headers.loss),
        (RELEASED_HEADER, headers.released),
        (DELAY_HEADER, headers.delay_ms),
    ];
    for (name, value) in numbers {
        if value > 0 {
            table.insert(name.into(), number(value));
        }
    }
    for (name, value) in texts(headers) {
        table.insert(name.into(), text(value));
    }
    table
}

fn texts(headers: &Headers) -> impl Iterator<Item = (&'static str, &str)> {
    let all = [
        (REASON, &headers.reason),
        (ORIGIN, &headers.origin),
        (TRACEPARENT, &headers.traceparent),
        (UNDECODABLE_HEADER, &headers.undecodable),
    ];
    all.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)))
}

/// The message that was delivered. From the dead queue, what the broker itself moved there says why.
pub(crate) fn incoming(properties: &BasicProperties, body: Bytes, from_dead_queue: bool) -> Message {
    let text =
        |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default();
    let table = properties.headers().as_ref();
    let header = |name: &str| table.and_then(|table| table.inner().get(name));
    let mut headers = Headers {
        attempt: header(ATTEMPT).map(count).unwrap_or_default(),
        loss: header(LOSS).map(count).unwrap_or_default(),
        released: header(RELEASED_HEADER).map(count).unwrap_or_default(),
        undecodable: header(UNDECODABLE_HEADER).and_then(string),
        delay_ms: header(DELAY_HEADER).map(count).unwrap_or_default(),
        reason: header(REASON).and_then(string),
        origin: header(ORIGIN).and_then(string),
        traceparent: header(TRACEPARENT).and_then(string).filter(|trace| trace.len() <= REASON_MAX_BYTES),
    };
    if from_dead_queue && let Some(table) = table {
        let (reason, origin) = death(table);
        headers.reason = headers.reason.or(reason);
        headers.origin = headers.origin.or(origin);
    }
    // They travel on with what follows, so they must fit into that.
    for text in [&mut headers.reason, &mut headers.origin, &mut headers.undecodable].into_iter().flatten() {
        *text = clip_reason(text).into_owned();
    }
    Message {
        id: text(properties.message_id()),
        form: text(properties.kind()),
        job: properties.correlation_id().as_ref().and_then(|id| id.as_str().parse().ok()),
        app: text(properties.app_id()),
        timestamp_ms: properties.timestamp().unwrap_or_default().saturating_mul(1_000),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        headers,
        body,
    }
}

/// How often the message was delivered before. Quorum queues count it, but not on every version for every reason; the
/// flag is never wrong.
pub(crate) fn deliveries_before(properties: &BasicProperties, redelivered: bool) -> u32 {
    let table = properties.headers().as_ref();
    let counted = table.and_then(|table| table.inner().get(DELIVERY_COUNT)).map_or(0, count);
    if redelivered { counted.max(1) } else { 0 }
}

/// Why and whence the broker moved the message: its latest move, or the first where the broker tells only that.
fn death(table: &FieldTable) -> (Option<String>, Option<String>) {
    let latest = match table.inner().get("x-death") {
        Some(AMQPValue::FieldArray(moves)) => match moves.as_slice().first() {
            Some(AMQPValue::FieldTable(latest)) => Some(latest),
            _ => None,
        },
        _ => None,
    };
    let said = |key: &str, first: &str| {
        latest
            .and_then(|latest| latest.inner().get(key))
            .or_else(|| table.inner().get(first))
            .and_then(string)
    };
    let reason = said("reason", "x-first-death-reason").map(|why| format!("the broker gave it up: {why}"));
    (reason, said("queue", "x-first-death-queue"))
}

fn count(value: &AMQPValue) -> u32 {
    let number = match *value {
        AMQPValue::ShortShortInt(number) => number.into(),
        AMQPValue::ShortShortUInt(number) => number.into(),
        AMQPValue::ShortInt(number) => number.into(),
        AMQPValue::ShortUInt(number) => number.into(),
        AMQPValue::LongInt(number) => number.into(),
        AMQPValue::LongUInt(number) => number.into(),
        AMQPValue::LongLongInt(number) => number,
        _ => 0,
    };
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

fn string(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(text.to_string()), // invalid UTF-8 becomes U+FFFD
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::JobId;
    use lapin::types::FieldArray;

    use super::*;
    use crate::topology::table;

    fn full() -> Message {
        Message {
            id: "id".into(),
            form: "gristmill.batch.v1".into(),
            job: Some(JobId::generate()),
            app: "worker-1".into(),
            timestamp_ms: 1_700_000_000_000,
            content_type: "application/json".into(),
            content_encoding: "zstd".into(),
            headers: Headers {
                attempt: 3,
                loss: 2,
                released: 1,
                undecodable: Some("1733745901204 worker-1".into()),
                delay_ms: 45_000,
                reason: Some("why".into()),
                origin: Some("gristmill.default.tasks".into()),
                traceparent: Some("00-1-2-01".into()),
            },
            body: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        for message in [full(), Message::default()] {
            let properties = outgoing(&message, true);
            assert_eq!(incoming(&properties, message.body.clone(), false), message);
        }
    }

    #[test]
    fn defaults_are_left_out() {
        let properties = outgoing(&Message::default(), false);
        assert_eq!(*properties.delivery_mode(), Some(1));
        assert_eq!(*properties.message_id(), None);
        assert_eq!(*properties.content_encoding(), None);
        assert!(properties.headers().as_ref().unwrap().inner().is_empty());
    }

    #[test]
    fn what_amqp_has_no_room_for_is_refused() {
        let long = Message { id: "x".repeat(256), ..full() };
        assert!(fits(&long).unwrap_err().contains("message id is 256 bytes"));
        let mut long = full();
        long.headers.reason = Some("x".repeat(HEADERS_MAX_BYTES));
        assert!(fits(&long).unwrap_err().contains("headers"));
        assert_eq!(fits(&full()), Ok(()));
    }

    #[test]
    fn odd_properties_become_defaults() {
        let properties =
            BasicProperties::default().with_correlation_id("no uuid".into()).with_headers(table([
                (ATTEMPT, text("three")),
                (LOSS, AMQPValue::LongLongInt(-5)),
                (REASON, AMQPValue::LongLongInt(7)),
                (ORIGIN, AMQPValue::LongString(vec![b'a', 0xff].into())),
            ]));
        let message = incoming(&properties, Bytes::new(), false);
        assert_eq!((message.job, message.headers.attempt, message.headers.loss), (None, 0, 0));
        assert_eq!(message.headers.reason, None);
        assert_eq!(message.headers.origin.as_deref(), Some("a\u{fffd}"));
        assert_eq!(incoming(&BasicProperties::default(), Bytes::new(), true), Message::default());
    }

    #[test]
    fn deliveries_are_counted_by_the_broker_or_to_one() {
        let counted = |count: i64| {
            BasicProperties::default().with_headers(table([(DELIVERY_COUNT, AMQPValue::LongLongInt(count))]))
        };
        assert_eq!(deliveries_before(&counted(3), true), 3);
        assert_eq!(deliveries_before(&counted(0), true), 1);
        assert_eq!(deliveries_before(&BasicProperties::default(), true), 1);
        assert_eq!(deliveries_before(&BasicProperties::default(), false), 0);
        assert_eq!(deliveries_before(&counted(3), false), 0, "a header that a publisher brought along");
    }

    #[test]
    fn what_comes_with_long_headers_can_go_on() {
        let long = "x".repeat(70_000);
        let headers = table([(REASON, text(&long)), (ORIGIN, text(&long)), (TRACEPARENT, text(&long))]);
        let message = incoming(&BasicProperties::default().with_headers(headers), Bytes::new(), false);
        fits(&message).unwrap();
        assert_eq!(message.headers.traceparent, None, "half of it is none");
        assert!(message.headers.reason.unwrap().ends_with("(cut)"));
    }

    #[test]
    fn counts_come_in_any_width() {
        for value in [
            AMQPValue::ShortShortInt(4),
            AMQPValue::ShortShortUInt(4),
            AMQPValue::ShortInt(4),
            AMQPValue::ShortUInt(4),
            AMQPValue::LongInt(4),
            AMQPValue::LongUInt(4),
            AMQPValue::LongLongInt(4),
        ] {
            assert_eq!(count(&value), 4, "{value:?}");
        }
        assert_eq!(count(&AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
    }

    #[test]
    fn the_dead_queue_tells_what_the_broker_did_and_no_other_queue_does() {
        let latest = table([("reason", text("delivery_limit")), ("queue", text("again"))]);
        let moves = FieldArray::from(vec![AMQPValue::FieldTable(latest)]);
        let moved = table([
            ("x-death", AMQPValue::FieldArray(moves)),
            ("x-first-death-reason", text("expired")),
            ("x-first-death-queue", text("retry")),
        ]);
        let properties = BasicProperties::default().with_headers(moved);
        let dead = incoming(&properties, Bytes::new(), true).headers;
        assert_eq!(dead.reason.as_deref(), Some("the broker gave it up: delivery_limit"));
        assert_eq!(dead.origin.as_deref(), Some("again"));
        assert_eq!(incoming(&properties, Bytes::new(), false).headers, Headers::default());

        let first = BasicProperties::default()
            .with_headers(table([("x-first-death-reason", text("rejected")), (ORIGIN, text("ours"))]));
        let dead = incoming(&first, Bytes::new(), true).headers;
        assert_eq!(dead.reason.as_deref(), Some("the broker gave it up: rejected"));
        assert_eq!(dead.origin.as_deref(), Some("ours"), "our own word counts for more");
    }
}
