//! What readers of a ledger get, ready for people and for `--json`.

use std::ops::{ControlFlow, Range};

use gristmill_shared::{
    Account, BuildId, Conclusion, JobId, Kind, Lane, Plan, Policy, Round, TaskIndex, WorkerId,
    wire::{BuildShare, Opened},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{JobState, Record};

/// One job, as a list shows it.
#[derive(Debug, Clone, Serialize)]
pub struct JobSummary {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The lane its tasks are sent to.
    pub lane: Lane,
    /// Where it stands.
    pub state: JobState,
    /// The round it is in, or ended in.
    pub round: Round,
    /// How many tasks have which outcome.
    pub account: Account,
    /// Whether the split is complete, so that `account.total` is final.
    pub sealed: bool,
    /// What the tasks with an outcome took, together, in microseconds of one slot.
    pub busy_us: u64,
    /// When it was submitted, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// When it ended.
    pub finished_ms: Option<u64>,
    /// If it stalls: when the last outcome came.
    pub stalled_ms: Option<u64>,
}

impl From<&Record> for JobSummary {
    fn from(record: &Record) -> Self {
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

/// Everything about one job but its failures and its outputs.
#[derive(Debug, Serialize)]
pub struct JobView {
    /// What the list shows.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// Its parameters.
    pub spec: Box<RawValue>,
    /// How its tasks are treated when they fail.
    pub policy: Policy,
    /// What it said before it started.
    pub plan: Plan,
    /// The digest of its tasks, once the split is complete.
    pub digest: Option<String>,
    /// What the user reads, once it has ended.
    pub conclusion: Option<Conclusion>,
    /// The report so far; none before the first output.
    pub report: Option<Box<RawValue>>,
    /// Whether its outputs are kept beside the report.
    pub keeps_outputs: bool,
    /// The version of its code in this round.
    pub version: u32,
    /// The build that submitted it, if that is known.
    pub build: Option<BuildId>,
    /// The builds that worked on it, ordered by version and build.
    pub builds: Vec<BuildShare>,
    /// Tasks of which an outcome was refused, and that have no other.
    pub refused: MissingTasks,
    /// True if the tasks are kept beside the outputs.
    pub keeps_tasks: bool,
    /// If it stalls: the tasks that are known and have no outcome.
    pub missing: Option<MissingTasks>,
    /// How many messages that were none of ours the ledger was given, about whatever job.
    pub dead_messages: u64,
}

/// Tasks without an outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MissingTasks {
    /// How many.
    pub tasks: u64,
    /// Which: the first [`MISSING_MAX_RANGES`](gristmill_shared::wire::MISSING_MAX_RANGES) ranges.
    pub ranges: Vec<Range<u64>>,
}

impl JobView {
    pub(super) fn new(
        record: Record,
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
    /// Which.
    pub index: TaskIndex,
    /// Why.
    pub reason: String,
    /// How often it was tried, and ended in an error of its own.
    pub attempts: u32,
    /// How often its worker died.
    pub losses: u32,
    /// Who ran it last; none if its message was given up.
    pub worker: Option<WorkerId>,
    /// The round it failed in.
    pub round: Round,
    /// The task itself; none if only its output came, and did not decode.
    pub task: Option<Box<RawValue>>,
}

/// An output that was kept.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct OutputRow<'a> {
    /// Which task's.
    pub index: TaskIndex,
    /// The task itself, if it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<&'a RawValue>,
    /// The output.
    pub output: &'a RawValue,
}

/// Takes one row after another, until it wants no more.
pub type OutputPass<'a> = &'a mut dyn FnMut(OutputRow<'_>) -> ControlFlow<()>;

/// Everything about a job: first the job, then its failures by index, then the outputs that were kept by index, and at
/// the end how many there were, so that a reader knows that nothing was cut off.
///
/// As JSON, each is an object with one field, which has its name: `{"failure":{"index":7,…}}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportRow<'a> {
    /// The job; once.
    Job(Box<JobView>),
    /// A task that failed for good.
    Failure(FailureRow),
    /// A task's output.
    Output(OutputRow<'a>),
    /// The end; once.
    End {
        /// How many failures there were.
        failures: u64,
        /// How many outputs there were.
        outputs: u64,
    },
}

/// Messages about jobs that the ledger does not know.
#[derive(Debug, Clone, Serialize)]
pub struct ParkedMessages {
    /// By job.
    pub jobs: Vec<ParkedJob>,
    /// How many were dropped because there were too many.
    pub dropped: u64,
}

/// Messages about one job that the ledger does not know.
#[derive(Debug, Clone, Serialize)]
pub struct ParkedJob {
    /// The job.
    pub job: JobId,
    /// How many.
    pub messages: u64,
    /// How large they are, together.
    pub bytes: u64,
}

/// Messages that were none of ours.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetters {
    /// The newest first.
    pub messages: Vec<DeadRow>,
    /// How many older ones were dropped because there were too many.
    pub dropped: u64,
}

/// A message that was none of ours.
#[derive(Debug, Clone, Serialize)]
pub struct DeadRow {
    /// When it was recorded, in milliseconds since 1970.
    pub received_ms: u64,
    /// Why it is here.
    pub reason: String,
    /// The queue it came from, if that is known.
    pub origin: Option<String>,
    /// Its id.
    pub id: String,
    /// What it says it is.
    pub form: String,
    /// Who says to have sent it.
    pub app: String,
    /// The job it says it is about.
    pub job: Option<JobId>,
    /// How large its body was.
    pub bytes: u64,
    /// The beginning of the body; what is no UTF-8 is replaced.
    pub body: String,
}
