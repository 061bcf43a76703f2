//! Outcomes of tasks: what a worker sends and the sink folds.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Aborted, Audit, Cancelled, Form, Malformed, Opened, Reopen, Sealed, decode, form, is_zero};
use crate::{BuildId, JobId, Message, Round, TaskIndex, WorkerId};

/// The longest reason of a failure; what is longer is cut.
pub const REASON_MAX_BYTES: usize = 4 << 10;

/// `gristmill.results.v1`: outcomes of tasks of one job. Several may settle one batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results<'a> {
    /// The job.
    pub job: JobId,
    /// The round the tasks were sent in.
    pub round: Round,
    /// Who ran them.
    pub worker: WorkerId,
    /// How long they took, together, in microseconds of one slot.
    #[serde(default)]
    pub busy_us: u64,
    /// Outputs of consecutive tasks.
    #[serde(default, borrow)]
    pub done: Vec<DoneSpan<'a>>,
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

form!(Results<'_>, "gristmill.results.v1");

/// Outputs of consecutive tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoneSpan<'a> {
    /// The first task's index.
    pub first: TaskIndex,
    /// How many outputs there are. A span whose `outputs` has another length is malformed.
    pub count: u32,
    /// A JSON array of the outputs.
    #[serde(borrow)]
    pub outputs: &'a RawValue,
    /// A JSON array of the tasks themselves, as many as outputs; if the job folds them or keeps
    /// them.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<&'a RawValue>,
}

/// A task that failed for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FailedTask<'a> {
    /// The task's index.
    pub index: TaskIndex,
    /// Why, at most [`REASON_MAX_BYTES`].
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// How often it was tried, over all rounds, and ended in an error of its own.
    pub attempts: u32,
    /// How often its worker died.
    #[serde(default)]
    pub losses: u32,
    /// The task itself, so that it can be shown and sent again.
    #[serde(borrow)]
    pub task: &'a RawValue,
}

/// Cuts a reason to what the wire allows.
#[must_use]
pub fn clip_reason(reason: &str) -> Cow<'_, str> {
    clip_text(reason, REASON_MAX_BYTES)
}

/// Cuts a text to at most `max_bytes`, which is more than the mark of the cut takes, and marks the
/// cut.
#[must_use]
pub fn clip_text(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return text.into();
    }
    const MARK: &str = " … (cut)";
    let mut end = max_bytes.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end]).into()
}

/// How many bytes a text takes as JSON, where some characters take six.
pub(crate) fn encoded_len(text: &str) -> usize {
    serde_json::to_string(text).map_or(text.len(), |json| json.len())
}

/// Everything that may come to a sink on a lane's results queue.
#[derive(Debug)]
pub enum ToSink<'a> {
    /// Outcomes.
    Results(Results<'a>),
    /// A job begins.
    Opened(Opened),
    /// Its split is complete.
    Sealed(Sealed),
    /// Its split failed.
    Aborted(Aborted),
    /// Somebody ends it.
    Cancelled(Cancelled),
    /// Its failed tasks are to be sent again.
    Reopen(Reopen),
    /// Somebody wants to know what is missing.
    Audit(Audit),
}

impl<'a> ToSink<'a> {
    /// Reads a message from the results queue.
    ///
    /// # Errors
    /// [`Malformed`] if it is none of these.
    pub fn decode(message: &'a Message) -> Result<Self, Malformed> {
        match message.form.as_str() {
            Results::FORM => decode(message).map(Self::Results),
            Opened::FORM => decode(message).map(Self::Opened),
            Sealed::FORM => decode(message).map(Self::Sealed),
            Aborted::FORM => decode(message).map(Self::Aborted),
            Cancelled::FORM => decode(message).map(Self::Cancelled),
            Reopen::FORM => decode(message).map(Self::Reopen),
            Audit::FORM => decode(message).map(Self::Audit),
            other => Err(Malformed::new(format_args!("no message for a sink has the type {other:?}"))),
        }
    }

    /// The job it is about.
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
    fn a_long_reason_is_cut_between_characters() {
        let long = "ä".repeat(REASON_MAX_BYTES);
        let cut = clip_reason(&long);
        assert!(cut.len() <= REASON_MAX_BYTES && cut.ends_with("(cut)"));
        assert_eq!(clip_reason("short"), "short");
    }
}
