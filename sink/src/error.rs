//! Why a sink, or a look into a ledger, ends in an error.

use std::{io, path::PathBuf};

use gristmill_shared::{JobId, Lane, LedgerId, StoreError, TransportError};

/// Why a sink ends before it is told to, or why a ledger cannot be read.
///
/// Whatever it is: results that were not committed were not acknowledged, and come again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The file is something else. It was not touched.
    #[error("{} is not a ledger: {why} (hint: name another file, or one that does not exist yet)", .path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// There is no such file. Only for readers; a sink makes one.
    #[error("there is no ledger {} (hint: a sink makes it when it first starts; run this where that sink is, or name its file with --ledger)", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file, or the folder it is in, cannot be written.
    #[error("cannot write the ledger {}: {why} (hint: a sink writes the file and beside it)", .path.display())]
    ReadOnly {
        /// The ledger.
        path: PathBuf,
        /// What cannot be written.
        why: String,
    },
    /// SQLite keeps no write-ahead log there.
    #[error(
        "the ledger {} cannot have a write-ahead log where it is, SQLite stays with {mode:?} (hint: put it on a \
         disk of this machine; network file systems do not do)", .path.display()
    )]
    NoLog {
        /// The ledger.
        path: PathBuf,
        /// The journal mode that SQLite answers.
        mode: String,
    },
    /// Another sink works with it.
    #[error("the ledger {} is held by another sink ({holder}) (hint: one sink serves a lane; stop that one, or serve another lane with --lane)", .path.display())]
    Held {
        /// The ledger.
        path: PathBuf,
        /// What the other one wrote of itself.
        holder: String,
    },
    /// Another version made it. It was not touched.
    #[error(
        "the ledger {} has version {found}, and this program reads version {known} only (hint: use the gristmill that \
         made it, or name another file)", .path.display()
    )]
    OtherVersion {
        /// The ledger.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version known here.
        known: i64,
    },
    /// The operating system refuses something.
    #[error("cannot {doing} {}", .path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// SQLite fails: the disk is full, the file is damaged. Nothing of the unfinished transaction is kept.
    #[error("the ledger {place} fails while {doing}")]
    Ledger {
        /// The ledger.
        place: String,
        /// What was tried.
        doing: &'static str,
        /// What it said.
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
    /// The ledger has a running job that this program cannot fold. Nothing was changed.
    #[error(
        "the ledger {} has a running job that this program cannot fold: {job}: {why}; the sink does not start, and the \
         job stays as it is (hint: start the sink of the program that submitted it, and let the job end or cancel it \
         while that sink runs)", .path.display()
    )]
    OtherCode {
        /// The ledger.
        path: PathBuf,
        /// The job.
        job: JobId,
        /// The part that does not fit, and the reason.
        why: String,
    },
    /// Another ledger has the lane's jobs.
    #[error(
        "lane {lane} is served with another ledger: {place} (hint: use that one; or --adopt takes the lane over, \
         and jobs that are under way there do not end)"
    )]
    OtherLedger {
        /// The lane.
        lane: Lane,
        /// That ledger.
        ledger: LedgerId,
        /// Where it is.
        place: String,
    },
    /// Another sink took the lane while this one served it.
    #[error("lane {lane} was taken over with another ledger: {place}; this sink leaves it")]
    TakenOver {
        /// The lane.
        lane: Lane,
        /// Where the other ledger is.
        place: String,
    },
    /// The broker is gone, or does not let us.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The broker did not take a fact. It is kept in the ledger, and published when a sink starts again.
    #[error("a message of the sink cannot be handed on; it is kept and goes out when the sink starts again")]
    Store(#[from] StoreError),
    /// The operating system gives no thread.
    #[error("cannot start the ledger's thread")]
    Thread(#[source] io::Error),
    /// A defect of the sink itself.
    #[error("the ledger's thread died: {0}; this is a defect of the sink, not of a job")]
    Died(String),
}
