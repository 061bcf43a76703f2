//! The readers' side of a ledger: pages, each as of one commit.

use std::{collections::BTreeSet, fmt, ops::Range, time::Duration};

use gristmill_shared::{JobId, wire::BuildShare};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    DeadMessages, FailureRow, IndexSet, JobKey, JobRecord, LedgerError, LedgerLocation, PageBound,
    ParkedMessages,
};

/// Access to a ledger beside the sink that writes it. All methods block. Each answer is as of one
/// commit, and holds nothing that the sink waits for.
pub trait LedgerAccess: fmt::Debug + Send {
    /// Returns the location of the ledger.
    fn place(&self) -> &LedgerLocation;

    /// Reads the `most` jobs that follow `after`, the newest first by time of submission; from the
    /// newest on if it is `None`.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn jobs(&mut self, after: Option<JobsAfter>, most: usize) -> Result<Vec<JobRecord>, LedgerError>;

    /// Reads one job, if the ledger has it.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn job(&mut self, job: JobId, parts: JobParts) -> Result<Option<JobSnapshot>, LedgerError>;

    /// Reads the `most` failed tasks that follow the index `after`, ascending.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn failures(
        &mut self,
        job: JobKey,
        after: Option<u64>,
        most: usize,
    ) -> Result<Vec<FailureRow>, LedgerError>;

    /// Reads kept outputs, as the page says. An empty answer is the end.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn outputs(&mut self, job: JobKey, page: OutputsPage) -> Result<Vec<StoredOutputs>, LedgerError>;

    /// Reads the number of parked messages by job.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn parked(&mut self) -> Result<ParkedMessages, LedgerError>;

    /// Reads the recorded dead messages, the newest first.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn dead(&mut self) -> Result<DeadMessages, LedgerError>;

    /// Deletes jobs that have ended, with all their rows, also while a sink uses the ledger. If
    /// this is interrupted, the jobs are gone, and the next call deletes their remaining rows.
    ///
    /// # Errors
    /// If the ledger cannot be written.
    fn prune(&mut self, rule: PruneRule) -> Result<PruneReport, LedgerError>;
}

/// The place of a job in the list of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobsAfter {
    /// The time of submission, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// The id, which decides between jobs of one millisecond.
    pub job: JobId,
}

/// The parts of a job to read beside its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobParts {
    /// The report, and the outcomes if the job stalls or has refused tasks.
    View,
    /// The outcomes and the ranges of the kept outputs.
    Proof,
    /// None of them.
    Record,
}

/// A job as of one commit.
#[derive(Debug)]
pub struct JobSnapshot {
    /// Its key.
    pub key: JobKey,
    /// Its record.
    pub record: JobRecord,
    /// The builds that worked on it, ordered by version and build.
    pub builds: Vec<BuildShare>,
    /// The report, if it was asked for and there is one.
    pub report: Option<Box<RawValue>>,
    /// Tasks with an output, if they were asked for.
    pub done: IndexSet,
    /// Tasks that failed for good, if they were asked for.
    pub failed: BTreeSet<u64>,
    /// Tasks of which an outcome was refused, if they were asked for.
    pub refused: IndexSet,
    /// The ranges of kept outputs, ascending by their start, if they were asked for.
    pub kept: Vec<Range<u64>>,
    /// True if tasks are kept beside outputs.
    pub has_kept_tasks: bool,
    /// The number of the last kept row, by which later ones are told from those of this commit.
    pub last_output: i64,
    /// Dead messages that the ledger received, about any job.
    pub dead_messages: u64,
}

/// The order of kept outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputOrder {
    /// By the index of the first task, after which the next page continues.
    Split,
    /// By the number of the row, after which the next page continues.
    Arrival,
}

/// The choice of kept outputs for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputsPage {
    /// The order.
    pub order: OutputOrder,
    /// The row that the page follows, by the order's own number; `None` for the first page.
    pub after: Option<i64>,
    /// The last row number that belongs to the snapshot.
    pub last_output: i64,
    /// The size of the page.
    pub bound: PageBound,
}

/// Kept outputs of consecutive tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOutputs {
    /// The number of the row.
    pub row: i64,
    /// The index of the first task.
    pub first: u64,
    /// The outputs, as a JSON array.
    pub outputs: String,
    /// The tasks themselves as a JSON array, if they are kept.
    pub tasks: Option<String>,
}

/// The choice of ended jobs to delete: those that either field selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRule {
    /// Jobs that ended longer ago than this.
    pub older_than: Option<Duration>,
    /// All but this many: the last to end are kept, and of those that ended together the last
    /// submitted.
    pub keep: Option<usize>,
}

/// The result of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Jobs that were deleted.
    pub pruned: u64,
    /// Jobs that are left, including running ones.
    pub left: u64,
}
