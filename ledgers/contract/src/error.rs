//! Errors of ledgers and of their readers.

use std::{error::Error, io, path::PathBuf};

use gristmill_shared::JobId;

use crate::LedgerLocation;

/// The error of a ledger. The ledger has all of a failed commit or nothing of it, and the caller
/// cannot tell which: it drops the ledger, opens it again, and reads what is there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
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
    /// The store keeps no write-ahead log at this location.
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
    /// The store failed: the disk is full, or the file is damaged. The unfinished transaction is
    /// discarded.
    #[error("the ledger {place} fails while {doing}")]
    Storage {
        /// The ledger.
        place: LedgerLocation,
        /// The operation.
        doing: &'static str,
        /// The error of the store.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The ledger has no such job.
    #[error("the ledger {place} has no job {job} (hint: see `sink jobs`)")]
    NoSuchJob {
        /// The ledger.
        place: LedgerLocation,
        /// The id.
        job: JobId,
    },
    /// The job was pruned, or its failed tasks were sent again, between two pages. What was read so
    /// far does not fit together.
    #[error("job {job} changed while it was read from the ledger {place} (hint: read it again)")]
    Changed {
        /// The ledger.
        place: LedgerLocation,
        /// The id.
        job: JobId,
    },
}
