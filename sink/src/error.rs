//! Errors of a sink and of a ledger's readers.

use std::{io, path::PathBuf};

use gristmill_shared::{JobId, Lane, LedgerId, PublishError, TransportError};

/// The error that ended a sink, or that prevents reading a ledger.
///
/// In each case, uncommitted results were not acknowledged and are redelivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The file is something else. It was not touched.
    #[error("{} is not a ledger: {why} (hint: name another file, or one that does not exist yet)", .path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// A description of the actual content.
        why: String,
    },
    /// There is no such file. Only for readers; a sink creates one.
    #[error("there is no ledger {} (hint: a sink makes it when it first starts; run this where that sink is, or name its file with --ledger)", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file, or the folder it is in, is not writable.
    #[error("cannot write the ledger {}: {why} (hint: a sink writes the file and beside it)", .path.display())]
    ReadOnly {
        /// The ledger.
        path: PathBuf,
        /// The obstacle.
        why: String,
    },
    /// SQLite keeps no write-ahead log at this location.
    #[error(
        "the ledger {} cannot have a write-ahead log where it is, SQLite stays with {mode:?} (hint: put it on a \
         disk of this machine; network file systems are not supported)", .path.display()
    )]
    NoWriteAheadLog {
        /// The ledger.
        path: PathBuf,
        /// The journal mode that SQLite answers.
        mode: String,
    },
    /// Another sink uses the ledger.
    #[error("the ledger {} is held by another sink ({holder}) (hint: one sink serves a lane; stop that one, or serve another lane with --lane)", .path.display())]
    Locked {
        /// The ledger.
        path: PathBuf,
        /// The holder's own note in the lock file.
        holder: String,
    },
    /// The ledger was made by another version. It was not touched.
    #[error(
        "the ledger {} has version {found}, and this program reads version {known} only (hint: use the gristmill that \
         made it, or name another file)", .path.display()
    )]
    UnsupportedVersion {
        /// The ledger.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version known here.
        known: i64,
    },
    /// The operating system denied an operation.
    #[error("cannot {doing} {}", .path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// The operation.
        doing: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// SQLite failed: the disk is full, or the file is damaged. The unfinished transaction is
    /// discarded.
    #[error("the ledger {place} fails while {doing}")]
    Ledger {
        /// The ledger.
        place: String,
        /// The operation.
        doing: &'static str,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// The ledger has no such job.
    #[error("the ledger {} has no job {job} (hint: see `sink jobs`)", .path.display())]
    NoSuchJob {
        /// The ledger.
        path: PathBuf,
        /// The id.
        job: JobId,
    },
    /// The ledger has a running job that this program cannot fold. Nothing has changed.
    #[error(
        "the ledger {} has a running job that this program cannot fold: {job}: {why}; the sink does not start, and the \
         job stays as it is (hint: start the sink of the program that submitted it, and let the job end or cancel it \
         while that sink runs)", .path.display()
    )]
    IncompatibleJob {
        /// The ledger.
        path: PathBuf,
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
