//! Results: outcomes of tasks, sent by workers and folded by the sink.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Aborted, Audit, Cancelled, Malformed, Opened, Reopen, Sealed, WireMessage, decode, is_zero, wire_message,
};
use crate::{BuildId, JobId, Message, Round, TaskIndex, WorkerId};

/// The longest reason of a failure, in bytes. Longer ones are cut.
pub const REASON_MAX_BYTES: usize = 4 << 10;

/// `gristmill.results.v1`: outcomes of tasks of one job. Several of these messages may belong to
/// one batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results<'a> {
    /// The job.
    pub job: JobId,
    /// The round the tasks were sent in.
    pub round: Round,
    /// The worker that ran them.
    pub worker: WorkerId,
    /// The total run time of the tasks, in microseconds of one slot.
    #[serde(default)]
    pub busy_us: u64,
    /// Outputs of consecutive tasks.
    #[serde(default, borrow)]
    pub done: Vec<OutputRun<'a>>,
    /// Tasks that failed for good.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedTask<'a>>,
    /// The [version](crate::Job::VERSION) of the code that ran them. The sink refuses those of
    /// another version.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u32,
    /// The build of the program that ran them, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
}

wire_message!(Results<'_>, "gristmill.results.v1");

/// Outputs of consecutive tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputRun<'a> {
    /// The first task's index.
    pub first: TaskIndex,
    /// The number of outputs. A span whose `outputs` has another length is malformed.
    pub count: u32,
    /// A JSON array of the outputs.
    #[serde(borrow)]
    pub outputs: &'a RawValue,
    /// A JSON array of the tasks themselves, as many as outputs, if the job folds or keeps them.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<&'a RawValue>,
}

/// A task that failed for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FailedTask<'a> {
    /// The task's index.
    pub index: TaskIndex,
    /// The error, at most [`REASON_MAX_BYTES`].
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// The number of attempts, over all rounds, that ended in an error of the task itself.
    pub attempts: u32,
    /// The number of times that its worker crashed.
    #[serde(default)]
    pub losses: u32,
    /// The task itself, so that it can be shown and sent again.
    #[serde(borrow)]
    pub task: &'a RawValue,
}

/// Cuts a reason to [`REASON_MAX_BYTES`].
#[must_use]
pub fn clip_reason(reason: &str) -> Cow<'_, str> {
    clip_text(reason, REASON_MAX_BYTES)
}

/// Cuts a text to at most `max_bytes` and marks the cut. `max_bytes` must exceed the length of the
/// mark.
#[must_use]
pub fn clip_text(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return text.into();
    }
    const CUT_MARK: &str = " … (cut)";
    let mut end = max_bytes.saturating_sub(CUT_MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT_MARK}", &text[..end]).into()
}

/// Returns the size of a text as JSON, in bytes; some characters take six.
pub(crate) fn encoded_len(text: &str) -> usize {
    serde_json::to_string(text).map_or(text.len(), |json| json.len())
}

/// A message to a sink on a lane's results queue, of any type.
#[derive(Debug)]
pub enum SinkMessage<'a> {
    /// Outcomes.
    Results(Results<'a>),
    /// A job begins.
    Opened(Opened),
    /// The split of a job is complete.
    Sealed(Sealed),
    /// The split of a job failed.
    Aborted(Aborted),
    /// A user cancels a job.
    Cancelled(Cancelled),
    /// Failed tasks of a job are to be sent again.
    Reopen(Reopen),
    /// A client asks for the missing tasks of a job.
    Audit(Audit),
}

impl<'a> SinkMessage<'a> {
    /// Decodes a message from the results queue.
    ///
    /// # Errors
    /// [`Malformed`] if it is of none of these types.
    pub fn decode(message: &'a Message) -> Result<Self, Malformed> {
        match message.form.as_str() {
            Results::TYPE => decode(message).map(Self::Results),
            Opened::TYPE => decode(message).map(Self::Opened),
            Sealed::TYPE => decode(message).map(Self::Sealed),
            Aborted::TYPE => decode(message).map(Self::Aborted),
            Cancelled::TYPE => decode(message).map(Self::Cancelled),
            Reopen::TYPE => decode(message).map(Self::Reopen),
            Audit::TYPE => decode(message).map(Self::Audit),
            other => Err(Malformed::new(format_args!("no message for a sink has the type {other:?}"))),
        }
    }

    /// Returns the job of the message.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            Self::Results(body) => body.job,
            Self::Opened(body) => body.job,
            Self::Sealed(body) => body.job,
            Self::Aborted(body) => body.job,
            Self::Cancelled(body) => body.job,
            Self::Reopen(body) => body.job,
            Self::Audit(body) => body.job,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reason_is_cut_between_chars() {
        let long = "ä".repeat(REASON_MAX_BYTES);
        let cut = clip_reason(&long);
        assert!(cut.len() <= REASON_MAX_BYTES && cut.ends_with("(cut)"));
        assert_eq!(clip_reason("short"), "short");
    }
}
