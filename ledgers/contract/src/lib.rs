//! The contract of ledgers: the sink says by value what is to be true, and a store makes all of it
//! true or nothing.
//!
//! [`Ledger`] is the side of the sink, [`LedgerAccess`] the side of readers beside it, and
//! [`LedgerReader`] answers the questions of the `sink` commands from that. A new store implements
//! the two traits and passes the conformance suite (feature `conformance`).

mod access;
mod changes;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod index_set;
mod job_record;
mod ledger;
mod location;
mod reader;
mod verify;
mod views;

pub use access::{
    JobParts, JobSnapshot, JobsAfter, LedgerAccess, OutputOrder, OutputsPage, PruneReport, PruneRule,
    StoredOutputs,
};
pub use changes::{
    Changes, Committed, DEAD_BODY_MAX_BYTES, DEAD_MAX_MESSAGES, DeadMessage, JobChange, KeptOutputs,
    OutboxTarget, PARKED_MAX_BYTES, PARKED_MAX_MESSAGES, StoredFailure,
};
pub use error::LedgerError;
pub use index_set::{IndexSet, gaps, push_range};
pub use job_record::{JobEnd, JobRecord, JobState, OutcomeCounts, Seal};
pub use ledger::{JobKey, Ledger, OutboxRow, OutboxState, PageBound, RetryTask, SavedOutcomes, StoredJob};
pub use location::LedgerLocation;
pub use reader::LedgerReader;
pub use verify::Verification;
pub use views::{
    DeadMessages, DeadRow, ExportRow, FailureRow, JobSummary, JobView, MissingTasks, OutputPass, OutputRow,
    ParkedJob, ParkedMessages,
};

/// The largest number that every ledger can hold. A message with a task index or total above it is
/// malformed.
pub const NUMBER_MAX: u64 = i64::MAX as u64;
