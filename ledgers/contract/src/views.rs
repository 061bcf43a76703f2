//! Views of the ledger for its readers, ready for people and for `--json`.

use std::ops::{ControlFlow, Range};

use gristmill_shared::{
    Account, BuildId, Conclusion, JobId, Kind, Lane, Plan, Policy, Round, TaskIndex, WorkerId,
    wire::{BuildShare, Opened},
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{JobRecord, JobState};

/// One job, as a list shows it.
#[derive(Debug, Clone, Serialize)]
pub struct JobSummary {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The lane that its tasks are sent to.
    pub lane: Lane,
    /// Its state.
    pub state: JobState,
    /// The round that it is in, or ended in.
    pub round: Round,
    /// The number of tasks with each outcome.
    pub account: Account,
    /// True if the split is complete, so that `account.total` is final.
    pub sealed: bool,
    /// Total time of the tasks with an outcome, in microseconds of one slot.
    pub busy_us: u64,
    /// The time of submission, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// The time at which it ended, in milliseconds since 1970.
    pub finished_ms: Option<u64>,
    /// The time of the last outcome if the job stalls, in milliseconds since 1970.
    pub stalled_ms: Option<u64>,
}

impl From<&JobRecord> for JobSummary {
    fn from(record: &JobRecord) -> Self {
        let Opened { job, kind, lane, submitted_ms, .. } = &record.opened;
        Self {
            job: *job,
            kind: kind.clone(),
            lane: lane.clone(),
            state: record.state(),
            round: record.round,
            account: record.account(),
            sealed: record.seal.is_some(),
            busy_us: record.counts.busy_us,
            submitted_ms: *submitted_ms,
            finished_ms: record.end.as_ref().map(|end| end.at_ms),
            stalled_ms: record.stalled_ms,
        }
    }
}

/// Everything about one job except its failures and outputs.
#[derive(Debug, Serialize)]
pub struct JobView {
    /// The entry in the list.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// Its parameters.
    pub spec: Box<RawValue>,
    /// Its policy for failing tasks.
    pub policy: Policy,
    /// Its plan from before the split.
    pub plan: Plan,
    /// The digest of its tasks, once the split is complete.
    pub digest: Option<String>,
    /// The conclusion for the user, once it has ended.
    pub conclusion: Option<Conclusion>,
    /// The report so far; `None` before the first output.
    pub report: Option<Box<RawValue>>,
    /// True if its outputs are kept beside the report.
    pub keeps_outputs: bool,
    /// The version of its code in this round.
    pub version: u32,
    /// The build that submitted it, if known.
    pub build: Option<BuildId>,
    /// The builds that worked on it, ordered by version and build.
    pub builds: Vec<BuildShare>,
    /// Tasks of which an outcome was refused, and that have no other.
    pub refused: MissingTasks,
    /// True if the tasks are kept beside the outputs.
    pub keeps_tasks: bool,
    /// The known tasks without an outcome, if the job stalls.
    pub missing: Option<MissingTasks>,
    /// Dead messages that the ledger received, about any job.
    pub dead_messages: u64,
}

/// Tasks without an outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MissingTasks {
    /// Their number.
    pub tasks: u64,
    /// Their first [`MISSING_MAX_RANGES`](gristmill_shared::wire::MISSING_MAX_RANGES) ranges.
    pub ranges: Vec<Range<u64>>,
}

impl JobView {
    pub(crate) fn new(
        record: JobRecord,
        report: Option<Box<RawValue>>,
        missing: Option<MissingTasks>,
        refused: MissingTasks,
        builds: Vec<BuildShare>,
        keeps_tasks: bool,
        dead_messages: u64,
    ) -> Self {
        let summary = JobSummary::from(&record);
        let Opened { spec, policy, plan, build, .. } = record.opened;
        Self {
            summary,
            spec,
            policy,
            plan,
            digest: record.seal.map(|seal| seal.digest),
            conclusion: record.end.map(|end| end.conclusion),
            report,
            keeps_outputs: record.keeps_outputs,
            version: record.version,
            build,
            builds,
            refused,
            keeps_tasks,
            missing,
            dead_messages,
        }
    }
}

/// A task that failed for good.
#[derive(Debug, Clone, Serialize)]
pub struct FailureRow {
    /// The index of the task.
    pub index: TaskIndex,
    /// The reason of the failure.
    pub reason: String,
    /// Attempts that ended in an error of the task.
    pub attempts: u32,
    /// Attempts that ended with the loss of the worker.
    pub losses: u32,
    /// The last worker that ran it; `None` if its message was given up.
    pub worker: Option<WorkerId>,
    /// The round in which it failed.
    pub round: Round,
    /// The task itself; `None` if only its output arrived, and did not decode.
    pub task: Option<Box<RawValue>>,
}

/// A kept output.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct OutputRow<'a> {
    /// The index of its task.
    pub index: TaskIndex,
    /// The task itself, if it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<&'a RawValue>,
    /// The output.
    pub output: &'a RawValue,
}

/// A visitor that takes one row after another, until it breaks.
pub type OutputPass<'a> = &'a mut dyn FnMut(OutputRow<'_>) -> ControlFlow<()>;

/// Everything about a job: first the job, then its failures by index, then its kept outputs by
/// index, and finally the numbers of both, by which a reader detects a truncated export.
///
/// Each row, as JSON, is an object with one field, named after the variant:
/// `{"failure":{"index":7,…}}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportRow<'a> {
    /// The job; once.
    Job(Box<JobView>),
    /// A task that failed for good.
    Failure(FailureRow),
    /// An output of a task.
    Output(OutputRow<'a>),
    /// The end; once.
    End {
        /// The number of failures.
        failures: u64,
        /// The number of outputs.
        outputs: u64,
    },
}

/// Messages about jobs that the ledger does not know.
#[derive(Debug, Clone, Serialize)]
pub struct ParkedMessages {
    /// The messages by job.
    pub jobs: Vec<ParkedJob>,
    /// Messages dropped because there were too many.
    pub dropped: u64,
}

/// Messages about one job that the ledger does not know.
#[derive(Debug, Clone, Serialize)]
pub struct ParkedJob {
    /// The job.
    pub job: JobId,
    /// The number of messages.
    pub messages: u64,
    /// Their total size, in bytes.
    pub bytes: u64,
}

/// Recorded dead messages.
#[derive(Debug, Clone, Serialize)]
pub struct DeadMessages {
    /// The messages, the newest first.
    pub messages: Vec<DeadRow>,
    /// Older messages dropped because there were too many.
    pub dropped: u64,
}

/// A recorded dead message: malformed or foreign.
#[derive(Debug, Clone, Serialize)]
pub struct DeadRow {
    /// The time at which it was recorded, in milliseconds since 1970.
    pub received_ms: u64,
    /// The reason why it is dead.
    pub reason: String,
    /// The queue that it came from, if known.
    pub origin: Option<String>,
    /// Its id.
    pub id: String,
    /// Its message type, as stated.
    pub form: String,
    /// Its sender, as stated.
    pub app: String,
    /// Its job, as stated.
    pub job: Option<JobId>,
    /// The size of its body, in bytes.
    pub bytes: u64,
    /// The beginning of the body; invalid UTF-8 is replaced.
    pub body: String,
}
