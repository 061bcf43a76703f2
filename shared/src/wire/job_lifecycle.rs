//! Messages about a job as a whole, sent by a producer to the sink through the results queue, as
//! durable as results.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{is_zero, wire_message};
use crate::{BuildId, JobId, Kind, Lane, Plan, Policy, TaskIndex};

/// `gristmill.opened.v1`: a job begins. Sent before its first task. The sink repeats it in the
/// journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opened {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// Its parameters, at most 16 KiB.
    pub spec: Box<RawValue>,
    /// The retry policy of its tasks.
    pub policy: Policy,
    /// The number of tasks, if it is known in advance.
    pub plan: Plan,
    /// The lane its tasks are sent to.
    pub lane: Lane,
    /// The time of the submission, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// The [version](crate::Job::VERSION) of the job's code.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u32,
    /// The build of the program that submits it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
}

wire_message!(Opened, "gristmill.opened.v1");

/// `gristmill.sealed.v1`: the split is complete. Repeating it is harmless. A different seal fails
/// the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The job.
    pub job: JobId,
    /// The number of all tasks.
    pub total: u64,
    /// The digest of all tasks, see [`SplitDigest`](crate::SplitDigest).
    pub digest: String,
}

wire_message!(Sealed, "gristmill.sealed.v1");

/// `gristmill.aborted.v1`: the split failed; there will be no seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aborted {
    /// The job.
    pub job: JobId,
    /// The error.
    pub reason: String,
}

wire_message!(Aborted, "gristmill.aborted.v1");

/// `gristmill.cancelled.v1`: a user cancels the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The job.
    pub job: JobId,
    /// The reason, for people.
    pub reason: String,
}

wire_message!(Cancelled, "gristmill.cancelled.v1");

/// `gristmill.reopen.v1`: failed tasks are to be sent again, in a new round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reopen {
    /// The job.
    pub job: JobId,
    /// The failed tasks to send again; none means all.
    #[serde(default)]
    pub indices: Vec<TaskIndex>,
    /// True if the new round may belong to the sink's version of the job when that is another one.
    /// Otherwise the sink refuses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopt_version: bool,
}

wire_message!(Reopen, "gristmill.reopen.v1");

/// `gristmill.audit.v1`: a client asks for the tasks without an outcome. The sink answers with a
/// [`Missing`](super::Missing) in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The job.
    pub job: JobId,
    /// The first task to check.
    #[serde(default)]
    pub from: TaskIndex,
}

wire_message!(Audit, "gristmill.audit.v1");
