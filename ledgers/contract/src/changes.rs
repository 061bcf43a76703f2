//! Changes: all that one commit makes true, as plain data.

use gristmill_shared::{JobId, Lane, Message, Round, WorkerId, wire::BuildShare};
use serde_json::value::RawValue;

use crate::{JobKey, JobRecord};

/// Messages that may be parked. Beyond that the oldest are dropped, and counted.
pub const PARKED_MAX_MESSAGES: u64 = 10_000;
/// Bytes of bodies that may be parked. Beyond that the oldest messages are dropped, and counted.
pub const PARKED_MAX_BYTES: u64 = 64 << 20;
/// Dead messages that are kept. Beyond that the oldest are dropped, and counted.
pub const DEAD_MAX_MESSAGES: u64 = 10_000;
/// Bytes that are kept of a dead message's body.
pub const DEAD_BODY_MAX_BYTES: usize = 16 << 10;

/// All that one commit makes true. The parts take effect in the order of the fields.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    /// Jobs that are new or changed, each at most once.
    pub jobs: Vec<JobChange<'a>>,
    /// Jobs whose parked messages are deleted.
    pub unparked: Vec<JobId>,
    /// Messages to park, each under the job that it is about. The store drops the oldest of all
    /// beyond [`PARKED_MAX_MESSAGES`] and [`PARKED_MAX_BYTES`].
    pub parked: Vec<(JobId, Message)>,
    /// Dead messages to record. The store drops the oldest of all beyond [`DEAD_MAX_MESSAGES`].
    pub dead: Vec<DeadMessage>,
    /// Outbox rows that are deleted.
    pub settled: Vec<i64>,
    /// Messages to publish, in this order: the number of each row is higher than that of any row
    /// before it, and is never used again.
    pub outbox: Vec<(OutboxTarget, Lane, Message)>,
}

/// The changes of one job.
#[derive(Debug)]
pub struct JobChange<'a> {
    /// The key of the job, or `None` if it is new.
    pub key: Option<JobKey>,
    /// The whole record, which replaces the stored one. What its opening message says never
    /// changes.
    pub record: &'a JobRecord,
    /// Containers of the set of done tasks, which replace the stored ones of the same number.
    pub done: Vec<(u64, Vec<u8>)>,
    /// Containers of the set of refused tasks, likewise.
    pub refused: Vec<(u64, Vec<u8>)>,
    /// Failures by task. `None` deletes one.
    pub failures: Vec<(u64, Option<StoredFailure>)>,
    /// Outputs to keep; no task has two.
    pub outputs: Vec<KeptOutputs>,
    /// The report, which replaces the stored one; `None` leaves that.
    pub report: Option<&'a RawValue>,
    /// Outcomes to add to the counts of these builds.
    pub builds: Vec<BuildShare>,
}

impl<'a> JobChange<'a> {
    /// Creates a change of the record alone.
    #[must_use]
    pub fn new(key: Option<JobKey>, record: &'a JobRecord) -> Self {
        Self {
            key,
            record,
            done: Vec::new(),
            refused: Vec::new(),
            failures: Vec::new(),
            outputs: Vec::new(),
            report: None,
            builds: Vec::new(),
        }
    }
}

/// The result of a commit.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The key of each job of [`Changes::jobs`], in their order.
    pub keys: Vec<JobKey>,
    /// Parked messages that were dropped.
    pub parked_dropped: u64,
}

/// A task that failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFailure {
    /// The round in which it failed.
    pub round: Round,
    /// The reason.
    pub reason: String,
    /// Attempts that ended in an error of the task.
    pub attempts: u32,
    /// Attempts that ended with the loss of the worker.
    pub losses: u32,
    /// The last worker that ran it, if known.
    pub worker: Option<WorkerId>,
    /// The task itself, if known.
    pub payload: Option<String>,
}

/// Outputs of consecutive tasks, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptOutputs {
    /// The index of the first task.
    pub first: u64,
    /// The number of tasks.
    pub count: u64,
    /// A JSON array.
    pub outputs: String,
    /// The tasks themselves as a JSON array, if they are kept.
    pub tasks: Option<String>,
}

/// A malformed or foreign message, to be recorded.
#[derive(Debug, Clone)]
pub struct DeadMessage {
    /// The time at which it is recorded, in milliseconds since 1970.
    pub received_ms: u64,
    /// The reason why it is dead.
    pub reason: String,
    /// The message. The store keeps the first [`DEAD_BODY_MAX_BYTES`] of its body, and its size.
    pub message: Message,
}

/// The destination of an outbox row. Rows of one target are published in order, except those that
/// the broker rejects at first; targets do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutboxTarget {
    /// Facts about jobs.
    Journal,
    /// Tasks that are sent again.
    Tasks,
    /// Malformed or foreign messages.
    Dead,
}

impl OutboxTarget {
    /// Every target.
    pub const ALL: [Self; 3] = [Self::Journal, Self::Tasks, Self::Dead];

    /// Returns the name under which a store keeps the target.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Tasks => "tasks",
            Self::Dead => "dead",
        }
    }
}
