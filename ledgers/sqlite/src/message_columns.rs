//! Whole messages in two columns: `properties` and `body`.

use bytes::Bytes;
use gristmill_shared::{Headers, JobId, Message};
use rusqlite::Row;
use serde::{Deserialize, Serialize};

use crate::columns::{parse_json, to_json};

/// A message in the form of the column `properties`, and so without its body.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredMessage(#[serde(with = "MessageProperties")] pub(crate) Message);

/// The properties of a message, as the column names them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Message", default = "Message::default")]
struct MessageProperties {
    id: String,
    form: String,
    job: Option<JobId>,
    app: String,
    timestamp_ms: u64,
    content_type: String,
    content_encoding: String,
    #[serde(flatten, with = "HeaderProperties")]
    headers: Headers,
    #[serde(skip)]
    body: Bytes,
}

/// The headers of a message, beside its other properties.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Headers", default = "Headers::default")]
struct HeaderProperties {
    attempt: u32,
    loss: u32,
    released: u32,
    undecodable: Option<String>,
    delay_ms: u32,
    reason: Option<String>,
    origin: Option<String>,
    traceparent: Option<String>,
}

/// Returns the value of the column `properties`.
pub(crate) fn encode_properties(message: &Message) -> String {
    to_json(&StoredMessage(message.clone()))
}

/// Reads the message from these two columns.
pub(crate) fn read_message(row: &Row<'_>, properties: usize, body: usize) -> rusqlite::Result<Message> {
    let StoredMessage(message) = parse_json(row, properties)?;
    let body: Vec<u8> = row.get(body)?;
    Ok(Message { body: body.into(), ..message })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ledgers of earlier versions are read, and this is their format.
    #[test]
    fn properties_keep_their_format() {
        let headers = Headers {
            attempt: 1,
            loss: 2,
            released: 3,
            undecodable: Some("4 w".into()),
            delay_ms: 5,
            reason: Some("reason".into()),
            origin: Some("queue".into()),
            traceparent: None,
        };
        let message = Message {
            id: "id".into(),
            form: "form".into(),
            job: Some("01976a0e-5d2c-7000-8000-000000000001".parse().unwrap()),
            app: "app".into(),
            timestamp_ms: u64::MAX,
            content_type: "json".into(),
            content_encoding: "zstd".into(),
            headers,
            body: Bytes::new(),
        };
        let stored = concat!(
            r#"{"id":"id","form":"form","job":"01976a0e-5d2c-7000-8000-000000000001","app":"app","#,
            r#""timestamp_ms":18446744073709551615,"content_type":"json","content_encoding":"zstd","#,
            r#""attempt":1,"loss":2,"released":3,"undecodable":"4 w","delay_ms":5,"reason":"reason","#,
            r#""origin":"queue","traceparent":null}"#
        );
        assert_eq!(encode_properties(&message), stored);
        let read = |text| serde_json::from_str::<StoredMessage>(text).unwrap().0;
        assert_eq!(read(stored), message);
        assert_eq!(read(r#"{"later":{}}"#), Message::default(), "absent and unknown properties are no error");
    }
}
