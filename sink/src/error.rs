//! Errors of a sink.

use std::io;

use gristmill_ledger::{LedgerError, LedgerLocation};
use gristmill_shared::{JobId, Lane, LedgerId, PublishError, TransportError};

/// The error that ended a sink, or that prevents its start.
///
/// In each case, uncommitted results were not acknowledged and are redelivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The ledger failed, or cannot be opened. The unfinished transaction is discarded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger has a running job that this program cannot fold. Nothing has changed.
    #[error(
        "the ledger {place} has a running job that this program cannot fold: {job}: {why}; the sink does not start, and the \
         job stays as it is (hint: start the sink of the program that submitted it, and let the job end or cancel it \
         while that sink runs)"
    )]
    IncompatibleJob {
        /// The ledger.
        place: LedgerLocation,
        /// The job.
        job: JobId,
        /// The part that does not fit, and the reason.
        why: String,
    },
    /// Another ledger serves the lane.
    #[error(
        "lane {lane} is served with another ledger: {place} (hint: use that one; or --adopt takes the lane over, \
         and jobs that run there never end)"
    )]
    LaneClaimed {
        /// The lane.
        lane: Lane,
        /// The other ledger.
        ledger: LedgerId,
        /// Its location.
        place: String,
    },
    /// Another sink took the lane over while this one served it.
    #[error("lane {lane} was taken over with another ledger: {place}; this sink stops")]
    TakenOver {
        /// The lane.
        lane: Lane,
        /// The location of the other ledger.
        place: String,
    },
    /// The connection to the broker was lost, or the broker denies access.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The broker did not confirm a fact. The ledger keeps it, and it is published when a sink next
    /// starts.
    #[error(
        "the broker did not confirm a fact; the ledger keeps it, and the next start of the sink publishes it"
    )]
    Store(#[from] PublishError),
    /// The operating system cannot start the thread.
    #[error("cannot start the ledger's thread")]
    ThreadStart(#[source] io::Error),
    /// A defect of the sink itself.
    #[error("the ledger's thread died: {0}; this is a defect of the sink, not of a job")]
    ThreadDied(String),
}
