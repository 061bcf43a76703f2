//! The sink: folds results into reports, each task once, and keeps the ledger.
//!
//! Results come in on the broker's side ([`Sink::run_until`]) and are handed to one thread, which folds them and
//! commits them in groups; only what is committed is acknowledged, and what follows from it is published from the
//! ledger, again and again until the broker has it. So it does not matter when the sink is killed.

mod engine;
mod error;
mod index_set;
mod job;
mod lane_lock;
mod ledger;
mod outbox_publisher;
mod sink;
#[cfg(test)]
mod tests;

pub use error::SinkError;
pub use ledger::{
    DeadLetters, DeadRow, ExportRow, FailureRow, JobState, JobSummary, JobView, LedgerPlace, LedgerReader,
    MissingTasks, OutputPass, OutputRow, ParkedJob, ParkedMessages, PruneReport, PruneRule, Verification,
    prune,
};
pub use sink::{ClaimedSink, Sink, SinkConfig, SinkReport};
