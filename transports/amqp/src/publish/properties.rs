//! Conversion between messages and their AMQP properties.
//!
//! Decoding never fails, because other languages and operators publish messages too. A missing or
//! malformed property gets its default, and the wire module decides what that means.

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

/// Total size of all texts in a message's headers. They must fit into one frame.
const HEADERS_MAX_BYTES: usize = 64 << 10;
const PERSISTENT_MODE: u8 = 2;
const TRANSIENT_MODE: u8 = 1;

const ATTEMPT_HEADER: &str = "gm-attempt";
const LOSS_HEADER: &str = "gm-loss";
const RELEASED_HEADER: &str = "gm-released";
const UNDECODABLE_HEADER: &str = "gm-undecodable";
const DELAY_HEADER: &str = "gm-delay";
const DELIVERY_COUNT_HEADER: &str = "x-delivery-count";
const REASON_HEADER: &str = "gm-reason";
const ORIGIN_HEADER: &str = "gm-origin";
const TRACEPARENT_HEADER: &str = "traceparent";

/// Checks that all properties of a message fit into AMQP.
///
/// # Errors
/// The property that does not fit.
pub(crate) fn check_size(message: &Message) -> Result<(), String> {
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
    let size: usize = text_headers(headers).map(|(_, text)| text.len()).sum();
    if size > HEADERS_MAX_BYTES {
        return Err(format!(
            "its headers have {size} bytes of text, and at most {HEADERS_MAX_BYTES} are sent"
        ));
    }
    Ok(())
}

/// Converts a message that passed [`check_size`] to AMQP properties. Default values are omitted.
/// The timestamp is in seconds.
pub(crate) fn encode(message: &Message, durable: bool) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(if durable { PERSISTENT_MODE } else { TRANSIENT_MODE })
        .with_timestamp(message.timestamp_ms / 1_000)
        .with_headers(header_table(&message.headers));
    if let Some(id) = short_string(&message.id) {
        properties = properties.with_message_id(id);
    }
    if let Some(form) = short_string(&message.form) {
        properties = properties.with_type(form);
    }
    if let Some(job) = message.job {
        properties = properties.with_correlation_id(job.to_string().into());
    }
    if let Some(app) = short_string(&message.app) {
        properties = properties.with_app_id(app);
    }
    if let Some(content_type) = short_string(&message.content_type) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(encoding) = short_string(&message.content_encoding) {
        properties = properties.with_content_encoding(encoding);
    }
    properties
}

/// Returns `None` for a text that is empty or too long.
fn short_string(text: &str) -> Option<ShortString> {
    if text.is_empty() { None } else { ShortString::try_new(text).ok() }
}

fn header_table(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    let numbers = [
        (ATTEMPT_HEADER, headers.attempt),
        (LOSS_HEADER, headers.loss),
        (RELEASED_HEADER, headers.released),
        (DELAY_HEADER, headers.delay_ms),
    ];
    for (name, value) in numbers {
        if value > 0 {
            table.insert(name.into(), number(value));
        }
    }
    for (name, value) in text_headers(headers) {
        table.insert(name.into(), text(value));
    }
    table
}

fn text_headers(headers: &Headers) -> impl Iterator<Item = (&'static str, &str)> {
    let all = [
        (REASON_HEADER, &headers.reason),
        (ORIGIN_HEADER, &headers.origin),
        (TRACEPARENT_HEADER, &headers.traceparent),
        (UNDECODABLE_HEADER, &headers.undecodable),
    ];
    all.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)))
}

/// Converts a delivery to a message. In the dead queue, the broker's own dead-letter headers supply
/// a missing reason and origin.
pub(crate) fn decode(properties: &BasicProperties, body: Bytes, from_dead_queue: bool) -> Message {
    let text =
        |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default();
    let table = properties.headers().as_ref();
    let header = |name: &str| table.and_then(|table| table.inner().get(name));
    let mut headers = Headers {
        attempt: header(ATTEMPT_HEADER).map(to_count).unwrap_or_default(),
        loss: header(LOSS_HEADER).map(to_count).unwrap_or_default(),
        released: header(RELEASED_HEADER).map(to_count).unwrap_or_default(),
        undecodable: header(UNDECODABLE_HEADER).and_then(to_text),
        delay_ms: header(DELAY_HEADER).map(to_count).unwrap_or_default(),
        reason: header(REASON_HEADER).and_then(to_text),
        origin: header(ORIGIN_HEADER).and_then(to_text),
        traceparent: header(TRACEPARENT_HEADER)
            .and_then(to_text)
            .filter(|trace| trace.len() <= REASON_MAX_BYTES),
    };
    if from_dead_queue && let Some(table) = table {
        let (reason, origin) = read_death(table);
        headers.reason = headers.reason.or(reason);
        headers.origin = headers.origin.or(origin);
    }
    // Later messages carry them too, so they must fit there.
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

/// Returns the number of earlier deliveries. Quorum queues count them, but not on every version for
/// every reason; the flag is always right.
pub(crate) fn deliveries_before(properties: &BasicProperties, redelivered: bool) -> u32 {
    let table = properties.headers().as_ref();
    let counted = table.and_then(|table| table.inner().get(DELIVERY_COUNT_HEADER)).map_or(0, to_count);
    if redelivered { counted.max(1) } else { 0 }
}

/// Returns the reason and the queue of the broker's latest dead-lettering, or of the first if the
/// broker reports only that.
fn read_death(table: &FieldTable) -> (Option<String>, Option<String>) {
    let latest = match table.inner().get("x-death") {
        Some(AMQPValue::FieldArray(moves)) => match moves.as_slice().first() {
            Some(AMQPValue::FieldTable(latest)) => Some(latest),
            _ => None,
        },
        _ => None,
    };
    let value = |key: &str, first: &str| {
        latest
            .and_then(|latest| latest.inner().get(key))
            .or_else(|| table.inner().get(first))
            .and_then(to_text)
    };
    let reason = value("reason", "x-first-death-reason").map(|why| format!("the broker gave it up: {why}"));
    (reason, value("queue", "x-first-death-queue"))
}

fn to_count(value: &AMQPValue) -> u32 {
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

fn to_text(value: &AMQPValue) -> Option<String> {
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
    fn message_round_trips() {
        for message in [full(), Message::default()] {
            let properties = encode(&message, true);
            assert_eq!(decode(&properties, message.body.clone(), false), message);
        }
    }

    #[test]
    fn defaults_are_omitted() {
        let properties = encode(&Message::default(), false);
        assert_eq!(*properties.delivery_mode(), Some(1));
        assert_eq!(*properties.message_id(), None);
        assert_eq!(*properties.content_encoding(), None);
        assert!(properties.headers().as_ref().unwrap().inner().is_empty());
    }

    #[test]
    fn oversized_properties_are_refused() {
        let long = Message { id: "x".repeat(256), ..full() };
        assert!(check_size(&long).unwrap_err().contains("message id is 256 bytes"));
        let mut long = full();
        long.headers.reason = Some("x".repeat(HEADERS_MAX_BYTES));
        assert!(check_size(&long).unwrap_err().contains("headers"));
        assert_eq!(check_size(&full()), Ok(()));
    }

    #[test]
    fn malformed_properties_get_defaults() {
        let properties =
            BasicProperties::default().with_correlation_id("no uuid".into()).with_headers(table([
                (ATTEMPT_HEADER, text("three")),
                (LOSS_HEADER, AMQPValue::LongLongInt(-5)),
                (REASON_HEADER, AMQPValue::LongLongInt(7)),
                (ORIGIN_HEADER, AMQPValue::LongString(vec![b'a', 0xff].into())),
            ]));
        let message = decode(&properties, Bytes::new(), false);
        assert_eq!((message.job, message.headers.attempt, message.headers.loss), (None, 0, 0));
        assert_eq!(message.headers.reason, None);
        assert_eq!(message.headers.origin.as_deref(), Some("a\u{fffd}"));
        assert_eq!(decode(&BasicProperties::default(), Bytes::new(), true), Message::default());
    }

    #[test]
    fn redelivery_counts_at_least_once() {
        let counted = |count: i64| {
            BasicProperties::default()
                .with_headers(table([(DELIVERY_COUNT_HEADER, AMQPValue::LongLongInt(count))]))
        };
        assert_eq!(deliveries_before(&counted(3), true), 3);
        assert_eq!(deliveries_before(&counted(0), true), 1);
        assert_eq!(deliveries_before(&BasicProperties::default(), true), 1);
        assert_eq!(deliveries_before(&BasicProperties::default(), false), 0);
        assert_eq!(deliveries_before(&counted(3), false), 0, "a header that a publisher brought along");
    }

    #[test]
    fn long_headers_are_clipped() {
        let long = "x".repeat(70_000);
        let headers = table([
            (REASON_HEADER, text(&long)),
            (ORIGIN_HEADER, text(&long)),
            (TRACEPARENT_HEADER, text(&long)),
        ]);
        let message = decode(&BasicProperties::default().with_headers(headers), Bytes::new(), false);
        check_size(&message).unwrap();
        assert_eq!(message.headers.traceparent, None, "half of it is none");
        assert!(message.headers.reason.unwrap().ends_with("(cut)"));
    }

    #[test]
    fn counts_have_any_width() {
        for value in [
            AMQPValue::ShortShortInt(4),
            AMQPValue::ShortShortUInt(4),
            AMQPValue::ShortInt(4),
            AMQPValue::ShortUInt(4),
            AMQPValue::LongInt(4),
            AMQPValue::LongUInt(4),
            AMQPValue::LongLongInt(4),
        ] {
            assert_eq!(to_count(&value), 4, "{value:?}");
        }
        assert_eq!(to_count(&AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
    }

    #[test]
    fn only_dead_queue_reads_x_death() {
        let latest = table([("reason", text("delivery_limit")), ("queue", text("again"))]);
        let moves = FieldArray::from(vec![AMQPValue::FieldTable(latest)]);
        let moved = table([
            ("x-death", AMQPValue::FieldArray(moves)),
            ("x-first-death-reason", text("expired")),
            ("x-first-death-queue", text("retry")),
        ]);
        let properties = BasicProperties::default().with_headers(moved);
        let dead = decode(&properties, Bytes::new(), true).headers;
        assert_eq!(dead.reason.as_deref(), Some("the broker gave it up: delivery_limit"));
        assert_eq!(dead.origin.as_deref(), Some("again"));
        assert_eq!(decode(&properties, Bytes::new(), false).headers, Headers::default());

        let first = BasicProperties::default()
            .with_headers(table([("x-first-death-reason", text("rejected")), (ORIGIN_HEADER, text("ours"))]));
        let dead = decode(&first, Bytes::new(), true).headers;
        assert_eq!(dead.reason.as_deref(), Some("the broker gave it up: rejected"));
        assert_eq!(dead.origin.as_deref(), Some("ours"), "our own word counts for more");
    }
}
