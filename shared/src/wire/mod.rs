//! The wire format: the types of all bodies that are serialised to a broker.
//!
//! A message's `form` (the AMQP property `type`) names the type of its body. Bodies are JSON,
//! unknown fields are ignored, and a changed byte breaks the golden tests, which read the examples
//! of `docs/protocol.md`.

mod batch;
mod events;
mod job_lifecycle;
mod journal;
mod results;

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

pub use batch::{Batch, PackedTasks};
pub use events::{Event, Progress, RUNNING_MAX_TASKS, RunningTask, WorkerHeartbeat};
pub use job_lifecycle::{Aborted, Audit, Cancelled, Opened, Reopen, Sealed};
pub use journal::{
    BuildShare, FAILURE_NOTE_MAX_BYTES, FINISHED_MAX_FAILURES, FINISHED_REPORT_MAX_BYTES, Fact, FailureNote,
    Finished, MISSING_MAX_RANGES, Missing, Refused, Reopened, Serving, Stopped,
};
pub(crate) use results::encoded_len;
pub use results::{FailedTask, OutputRun, REASON_MAX_BYTES, Results, SinkMessage, clip_reason, clip_text};
use serde::{Deserialize, Serialize};

use crate::{JobId, Message, message::Headers};

/// The largest spec, encoded, in bytes: it travels with every batch.
pub const SPEC_MAX_BYTES: usize = 16 << 10;
/// A batch is closed when its encoded tasks reach this size.
pub const BATCH_MAX_BYTES: usize = 64 << 10;
/// A batch is closed when it has this many tasks.
pub const BATCH_MAX_TASKS: u32 = 10_000;
/// The largest single task, encoded.
pub const TASK_MAX_BYTES: usize = 1 << 20;
/// The largest single output, encoded.
pub const OUTPUT_MAX_BYTES: usize = 1 << 20;
/// A result message is closed when its encoded outputs reach this size.
pub const RESULTS_MESSAGE_BYTES: usize = 256 << 10;

/// The content type of every body.
const CONTENT_TYPE: &str = "application/json";

/// The content encodings of a body that is not compressed; some clients put the character set here.
const PLAIN_ENCODINGS: [&str; 3] = ["", "identity", "utf-8"];

/// A type that is sent as the body of a message.
pub trait WireMessage: Serialize {
    /// The name of the message type, with its version.
    const TYPE: &'static str;

    /// Returns the job of the value, if it has one.
    fn job(&self) -> Option<JobId>;

    /// Packs the value into a message with this id, published by `app`.
    fn message(&self, id: String, app: &str) -> Message {
        let body = serde_json::to_vec(self).expect("wire types have string keys and no failing Serialize");
        Message {
            id,
            form: Self::TYPE.into(),
            job: self.job(),
            app: app.into(),
            timestamp_ms: now_ms(),
            content_type: CONTENT_TYPE.into(),
            content_encoding: String::new(),
            headers: Headers::default(),
            body: body.into_boxed_slice().into(), // many bodies may be held, so none has spare capacity
        }
    }
}

/// Decodes a body as the type it must have.
///
/// # Errors
/// [`Malformed`] if the message has another type or the body does not decode.
pub fn decode<'a, F: WireMessage + Deserialize<'a>>(message: &'a Message) -> Result<F, Malformed> {
    if message.form != F::TYPE {
        return Err(Malformed::new(format_args!(
            "the message's type is {:?}, not {:?}",
            message.form,
            F::TYPE
        )));
    }
    if !PLAIN_ENCODINGS.contains(&message.content_encoding.as_str()) {
        return Err(Malformed::new(format_args!("unknown content-encoding {:?}", message.content_encoding)));
    }
    serde_json::from_slice(&message.body)
        .map_err(|error| Malformed::new(format_args!("the body is no {}: {error}", F::TYPE)))
}

/// The reason why a message cannot be read. The message goes to the dead queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    /// The reason for people, at most [`REASON_MAX_BYTES`].
    pub reason: String,
}

impl Malformed {
    /// Creates the error. Cuts the reason to [`REASON_MAX_BYTES`], since a decoder may quote its
    /// whole input.
    #[must_use]
    pub fn new(reason: impl fmt::Display) -> Self {
        Self { reason: clip_reason(&reason.to_string()).into_owned() }
    }
}

/// True if a number has the value that an absent field stands for.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Returns the milliseconds since 1970, for people to read.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Implements [`WireMessage`] for a type with a field `job`, or, with `jobless`, for one without.
macro_rules! wire_message {
    ($Type:ty, $name:literal) => {
        impl $crate::wire::WireMessage for $Type {
            const TYPE: &'static str = $name;
            fn job(&self) -> Option<$crate::JobId> {
                Some(self.job)
            }
        }
    };
    ($Type:ty, $name:literal, jobless) => {
        impl $crate::wire::WireMessage for $Type {
            const TYPE: &'static str = $name;
            fn job(&self) -> Option<$crate::JobId> {
                None
            }
        }
    };
}
pub(crate) use wire_message;
