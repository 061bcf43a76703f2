//! The sink's side of a ledger.

use std::{collections::BTreeSet, fmt};

use gristmill_shared::{JobId, Lane, LedgerId, Message, wire::BuildShare};
use serde_json::value::RawValue;

use crate::{
    Changes, Committed, IndexSet, JobRecord, KeptOutputs, LedgerError, LedgerLocation, OutboxTarget,
};

/// An open ledger, with the exclusive right to write it. Dropping it gives the right back.
///
/// All methods block, and one thread calls them. After an error the ledger has all of a commit or
/// nothing of it, and the caller cannot tell which: it drops the ledger, opens it again, and reads
/// what is there.
pub trait Ledger: fmt::Debug + Send {
    /// Returns the unique id of the ledger, which it keeps for ever.
    fn id(&self) -> &LedgerId;

    /// Returns the location of the ledger.
    fn place(&self) -> &LedgerLocation;

    /// Makes all changes true and durable in one transaction, or none.
    ///
    /// # Errors
    /// Besides those of the store: if a job with a key was pruned meanwhile. Its other rows are
    /// gone too, so it cannot be written again.
    fn commit(&mut self, changes: &Changes<'_>) -> Result<Committed, LedgerError>;

    /// Reads one job, if the ledger has it.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn job(&mut self, job: JobId) -> Result<Option<StoredJob>, LedgerError>;

    /// Reads the running jobs of a lane.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn running(&mut self, lane: &Lane) -> Result<Vec<JobRecord>, LedgerError>;

    /// Reads the outcomes of a job.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn outcomes(&mut self, job: JobKey) -> Result<SavedOutcomes, LedgerError>;

    /// Reads the report of a job; `None` before the first output.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn report(&mut self, job: JobKey) -> Result<Option<Box<RawValue>>, LedgerError>;

    /// Reads the `most` first failed tasks of a job with their reasons, in the order of the split.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn reasons(&mut self, job: JobKey, most: usize) -> Result<Vec<(u64, String)>, LedgerError>;

    /// Reads failed tasks whose payload is known, in the order of the split: those that are
    /// `wanted`, or all if that is empty.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn failed_tasks(
        &mut self,
        job: JobKey,
        wanted: &BTreeSet<u64>,
        bound: PageBound,
    ) -> Result<Vec<RetryTask>, LedgerError>;

    /// Reads kept outputs of a job in the order of the split: those whose first index is at least
    /// `from`, without their tasks. An empty page is the end.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn kept_outputs(
        &mut self,
        job: JobKey,
        from: u64,
        bound: PageBound,
    ) -> Result<Vec<KeptOutputs>, LedgerError>;

    /// Reads the outbox rows of a target with a number above `after`, ascending.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn outbox(
        &mut self,
        target: OutboxTarget,
        after: i64,
        bound: PageBound,
    ) -> Result<Vec<OutboxRow>, LedgerError>;

    /// Reads the size of the outbox and the lanes whose queues its rows need.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn outbox_state(&mut self) -> Result<OutboxState, LedgerError>;

    /// Reads the parked messages about a job, in the order of their arrival.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    fn parked(&mut self, job: JobId) -> Result<Vec<Message>, LedgerError>;
}

/// The key under which a ledger keeps a job. Another job never gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey(pub i64);

/// The bound of a page: it ends with the row that reaches either limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageBound {
    /// Rows, at least 1.
    pub rows: usize,
    /// Bytes of their payloads.
    pub bytes: usize,
}

/// A job without its outcomes.
#[derive(Debug, Clone)]
pub struct StoredJob {
    /// Its key.
    pub key: JobKey,
    /// Its record.
    pub record: JobRecord,
    /// The builds that worked on it.
    pub builds: Vec<BuildShare>,
}

/// The outcomes of a job.
#[derive(Debug, Default, PartialEq)]
pub struct SavedOutcomes {
    /// Tasks with an output.
    pub done: IndexSet,
    /// Tasks that failed for good.
    pub failed: BTreeSet<u64>,
    /// Tasks of which an outcome was refused; some may have another one by now.
    pub refused: IndexSet,
}

/// A failed task with the data that a worker needs to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryTask {
    /// Its index.
    pub index: u64,
    /// Attempts that ended in an error of the task.
    pub attempts: u32,
    /// The task itself, as JSON.
    pub payload: String,
}

/// A message of the outbox.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Its number.
    pub row: i64,
    /// Its lane.
    pub lane: Lane,
    /// The message.
    pub message: Message,
}

/// The size of the outbox, and its lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxState {
    /// The number of rows.
    pub rows: u64,
    /// The lanes whose queues the rows need.
    pub lanes: Vec<Lane>,
}
