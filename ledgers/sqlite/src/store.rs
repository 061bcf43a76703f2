//! The ledger: the sink's durable record in one SQLite file. All SQL is in this folder.

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
pub use location::LedgerLocation;
pub use prune::{PruneReport, PruneRule, prune};
pub use reader::LedgerReader;
pub use tables::job_record::JobState;
pub(crate) use tables::job_record::{JobEnd, JobRecord, OutcomeCounts, Seal};
pub(crate) use tables::{builds, dead_rows, ordered_outputs, outbox_rows, outcome_rows, parked_rows};
pub use verify::Verification;
pub use views::{
    DeadMessages, DeadRow, ExportRow, FailureRow, JobSummary, JobView, MissingTasks, OutputPass, OutputRow,
    ParkedJob, ParkedMessages,
};

use crate::SinkError;
use location::LedgerLock;
use schema::DatabaseKind;

/// Time that a statement waits for another process (a `prune`) to end its transaction.
const BUSY_MAX: Duration = Duration::from_secs(30);
/// Size that the write-ahead log is cut to after a checkpoint.
const WAL_MAX_BYTES: u64 = 64 << 20;

/// An open ledger, with the exclusive right to write it.
pub(crate) struct Ledger {
    connection: Connection,
    place: LedgerLocation,
    id: LedgerId,
    _lock: Option<LedgerLock>,
}

impl Ledger {
    /// Opens or creates a ledger. A failure leaves nothing behind, except possibly the lock's file.
    pub(crate) fn open(place: LedgerLocation) -> Result<Self, SinkError> {
        let (connection, lock) = match &place {
            LedgerLocation::File(path) => {
                match location::check_file(path) {
                    Ok(()) | Err(SinkError::Missing { .. }) => {}
                    Err(error) => return Err(error),
                }
                let path = location::resolve(path)?;
                let lock = LedgerLock::acquire(&path)?;
                (open_file(&path)?, Some(lock))
            }
            LedgerLocation::Memory => {
                let connection = Connection::open_in_memory();
                let connection =
                    connection.and_then(|connection| schema::create(&connection).map(|()| connection));
                (connection.map_err(|source| ledger_error(&place, "being made", source))?, None)
            }
        };
        let id =
            load_or_create_id(&connection).map_err(|source| ledger_error(&place, "being opened", source))?;
        Ok(Self { connection, place, id, _lock: lock })
    }

    /// Returns the unique id of the ledger.
    pub(crate) fn id(&self) -> &LedgerId {
        &self.id
    }

    /// Returns the location of the ledger.
    pub(crate) fn place(&self) -> &LedgerLocation {
        &self.place
    }

    /// Reads from the ledger. `doing` describes the read in an error.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SinkError> {
        read(&self.connection).map_err(|source| ledger_error(&self.place, doing, source))
    }

    /// Writes all or nothing, in one transaction.
    pub(crate) fn write<T>(
        &mut self,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, SinkError> {
        let write = || -> rusqlite::Result<T> {
            // Immediate: waits here for another writer, where nothing can be lost by it.
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok(written)
        };
        write().map_err(|source| ledger_error(&self.place, "results are written", source))
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({})", self.place)
    }
}

fn open_file(path: &Path) -> Result<Connection, SinkError> {
    let failed = |source| ledger_error(&LedgerLocation::File(path.into()), "being opened", source);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    let found = schema::identify(&connection, path)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(failed)? {
        let why = "the operating system opens it for reading only".into();
        return Err(SinkError::ReadOnly { path: path.into(), why });
    }
    enable_wal(&connection, path)?;
    connection
        .execute_batch(&format!("PRAGMA synchronous = FULL; PRAGMA journal_size_limit = {WAL_MAX_BYTES};"))
        .map_err(failed)?;
    if let DatabaseKind::Empty = found {
        let made = connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            schema::create(&connection)?;
            load_or_create_id(&connection)?;
            connection.execute_batch("COMMIT")
        });
        made.map_err(failed)?;
    }
    Ok(connection)
}

/// Enables SQLite's write-ahead log, without which readers and the sink would block each other.
fn enable_wal(connection: &Connection, path: &Path) -> Result<(), SinkError> {
    let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
    match mode.map_err(|source| ledger_error(&LedgerLocation::File(path.into()), "being opened", source))? {
        mode if mode == "wal" => Ok(()),
        mode => Err(SinkError::NoWriteAheadLog { path: path.into(), mode }),
    }
}

/// Opens a connection that waits for other processes.
fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, SinkError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .and_then(|connection| connection.busy_timeout(BUSY_MAX).map(|()| connection));
    connection.map_err(|source| ledger_error(&LedgerLocation::File(path.into()), "being opened", source))
}

/// Returns the ledger's id. A new ledger gets one.
fn load_or_create_id(connection: &Connection) -> rusqlite::Result<LedgerId> {
    let known = connection.query_row("SELECT id FROM ledger", [], |row| columns::parse_text(row, 0));
    match known {
        Err(rusqlite::Error::QueryReturnedNoRows) => {
            let id = LedgerId::generate();
            let values = (id.as_str(), columns::clamp_int(now_ms()));
            connection.execute("INSERT INTO ledger (id, created_ms) VALUES (?1, ?2)", values)?;
            Ok(id)
        }
        known => known,
    }
}

fn ledger_error(place: &LedgerLocation, doing: &'static str, source: rusqlite::Error) -> SinkError {
    SinkError::Ledger { place: place.to_string(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_wal_is_refused() {
        // SQLite answers this in memory, and on a file system that cannot map files into memory.
        let connection = Connection::open_in_memory().unwrap();
        let error = enable_wal(&connection, Path::new("ledger")).unwrap_err().to_string();
        assert!(error.contains("write-ahead log") && error.contains("\"memory\""), "{error}");
    }
}
