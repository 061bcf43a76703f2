//! The ledger: the sink's durable record in one SQLite file. This folder is all that knows SQL.

mod columns;
mod listing;
mod location;
mod message_columns;
mod prune;
mod reader;
mod schema;
mod tables;
mod verify;
mod views;

use std::{fmt, path::Path, time::Duration};

use gristmill_shared::{LedgerId, wire::now_ms};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

pub(crate) use columns::NUMBER_MAX;
pub use location::LedgerPlace;
pub use prune::{PruneReport, PruneRule, prune};
pub use reader::LedgerReader;
pub use tables::job_record::JobState;
pub(crate) use tables::job_record::{Counts, End, Record, Seal};
pub(crate) use tables::{builds, dead_rows, ordered_outputs, outbox_rows, outcome_rows, parked_rows};
pub use verify::Verification;
pub use views::{
    DeadLetters, DeadRow, ExportRow, FailureRow, JobSummary, JobView, MissingTasks, OutputPass, OutputRow,
    ParkedJob, ParkedMessages,
};

use crate::SinkError;
use location::LedgerLock;
use schema::Found;

/// How long a statement waits for another process (a `prune`) to end its transaction.
const BUSY_MAX: Duration = Duration::from_secs(30);
/// After a checkpoint the write-ahead log is cut to this size.
const WAL_MAX_BYTES: u64 = 64 << 20;

/// An open ledger, and the right to write it.
pub(crate) struct Ledger {
    connection: Connection,
    place: LedgerPlace,
    id: LedgerId,
    _lock: Option<LedgerLock>,
}

impl Ledger {
    /// Opens a ledger, or makes one. Nothing is left behind if that fails, but perhaps the lock's file.
    pub(crate) fn open(place: LedgerPlace) -> Result<Self, SinkError> {
        let (connection, lock) = match &place {
            LedgerPlace::File(path) => {
                match location::inspect(path) {
                    Ok(()) | Err(SinkError::Missing { .. }) => {}
                    Err(error) => return Err(error),
                }
                let path = location::real(path)?;
                let lock = LedgerLock::take(&path)?;
                (open_file(&path)?, Some(lock))
            }
            LedgerPlace::Memory => {
                let connection = Connection::open_in_memory();
                let connection =
                    connection.and_then(|connection| schema::create(&connection).map(|()| connection));
                (connection.map_err(|source| failed(&place, "being made", source))?, None)
            }
        };
        let id = identity(&connection).map_err(|source| failed(&place, "being opened", source))?;
        Ok(Self { connection, place, id, _lock: lock })
    }

    /// What tells this ledger from all others.
    pub(crate) fn id(&self) -> &LedgerId {
        &self.id
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &LedgerPlace {
        &self.place
    }

    /// Reads something.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SinkError> {
        read(&self.connection).map_err(|source| failed(&self.place, doing, source))
    }

    /// Writes everything or nothing.
    pub(crate) fn write<T>(
        &mut self,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, SinkError> {
        let write = || -> rusqlite::Result<T> {
            // Immediate: waiting for another writer happens here, where nothing is lost by it.
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok(written)
        };
        write().map_err(|source| failed(&self.place, "results are written", source))
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({})", self.place)
    }
}

fn open_file(path: &Path) -> Result<Connection, SinkError> {
    let failed = |source| failed(&LedgerPlace::File(path.into()), "being opened", source);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    let found = schema::look(&connection, path)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(failed)? {
        let why = "the operating system opens it for reading only".into();
        return Err(SinkError::ReadOnly { path: path.into(), why });
    }
    keep_log(&connection, path)?;
    connection
        .execute_batch(&format!("PRAGMA synchronous = FULL; PRAGMA journal_size_limit = {WAL_MAX_BYTES};"))
        .map_err(failed)?;
    if let Found::Empty = found {
        let made = connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            schema::create(&connection)?;
            identity(&connection)?;
            connection.execute_batch("COMMIT")
        });
        made.map_err(failed)?;
    }
    Ok(connection)
}

/// Has SQLite keep a write-ahead log, without which readers and the sink would wait for each other.
fn keep_log(connection: &Connection, path: &Path) -> Result<(), SinkError> {
    let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
    match mode.map_err(|source| failed(&LedgerPlace::File(path.into()), "being opened", source))? {
        mode if mode == "wal" => Ok(()),
        mode => Err(SinkError::NoLog { path: path.into(), mode }),
    }
}

/// A connection that waits for others.
fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, SinkError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .and_then(|connection| connection.busy_timeout(BUSY_MAX).map(|()| connection));
    connection.map_err(|source| failed(&LedgerPlace::File(path.into()), "being opened", source))
}

/// The ledger's id; a new ledger gets one.
fn identity(connection: &Connection) -> rusqlite::Result<LedgerId> {
    let known = connection.query_row("SELECT id FROM ledger", [], |row| columns::text(row, 0));
    match known {
        Err(rusqlite::Error::QueryReturnedNoRows) => {
            let id = LedgerId::generate();
            let values = (id.as_str(), columns::int(now_ms()));
            connection.execute("INSERT INTO ledger (id, created_ms) VALUES (?1, ?2)", values)?;
            Ok(id)
        }
        known => known,
    }
}

fn failed(place: &LedgerPlace, doing: &'static str, source: rusqlite::Error) -> SinkError {
    SinkError::Ledger { place: place.to_string(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_takes_no_write_ahead_log_is_refused() {
        // SQLite answers so on a file system that does not map files into memory; and in memory.
        let connection = Connection::open_in_memory().unwrap();
        let error = keep_log(&connection, Path::new("ledger")).unwrap_err().to_string();
        assert!(error.contains("write-ahead log") && error.contains("\"memory\""), "{error}");
    }
}
