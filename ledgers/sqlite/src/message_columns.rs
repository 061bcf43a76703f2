//! Whole messages in two columns: `properties` and `body`.

use gristmill_shared::{Headers, JobId, Message};
use rusqlite::Row;
use serde::{Deserialize, Serialize};

use crate::columns::{parse_json, to_json};

/// A message without its body.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
pub(crate) struct MessageProperties {
    pub(crate) id: String,
    pub(crate) form: String,
    pub(crate) job: Option<JobId>,
    pub(crate) app: String,
    timestamp_ms: u64,
    content_type: String,
    content_encoding: String,
    attempt: u32,
    loss: u32,
    released: u32,
    undecodable: Option<String>,
    delay_ms: u32,
    reason: Option<String>,
    pub(crate) origin: Option<String>,
    traceparent: Option<String>,
}

/// Returns the value of the column `properties`.
pub(crate) fn encode_properties(message: &Message) -> String {
    let Message { id, form, job, app, timestamp_ms, content_type, content_encoding, headers, body: _ } =
        message.clone();
    let Headers { attempt, loss, released, undecodable, delay_ms, reason, origin, traceparent } = headers;
    to_json(&MessageProperties {
        id,
        form,
        job,
        app,
        timestamp_ms,
        content_type,
        content_encoding,
        attempt,
        loss,
        released,
        undecodable,
        delay_ms,
        reason,
        origin,
        traceparent,
    })
}

/// Reads the message from these two columns.
pub(crate) fn read_message(row: &Row<'_>, properties: usize, body: usize) -> rusqlite::Result<Message> {
    let MessageProperties {
        id,
        form,
        job,
        app,
        timestamp_ms,
        content_type,
        content_encoding,
        attempt,
        loss,
        released,
        undecodable,
        delay_ms,
        reason,
        origin,
        traceparent,
    } = parse_json(row, properties)?;
    let headers = Headers { attempt, loss, released, undecodable, delay_ms, reason, origin, traceparent };
    let body: Vec<u8> = row.get(body)?;
    Ok(Message {
        id,
        form,
        job,
        app,
        timestamp_ms,
        content_type,
        content_encoding,
        headers,
        body: body.into(),
    })
}
