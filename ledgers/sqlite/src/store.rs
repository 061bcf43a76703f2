//! The sink's side of the ledger: one connection, one transaction a commit.

use std::{collections::BTreeSet, fmt, path::Path, time::Duration};

use gristmill_ledger::{
    Changes, Committed, JobChange, JobKey, JobRecord, KeptOutputs, Ledger, LedgerError, LedgerLocation,
    OutboxRow, OutboxState, OutboxTarget, PageBound, RetryTask, SavedOutcomes, StoredJob,
};
use gristmill_shared::{JobId, Lane, LedgerId, Message, wire::now_ms};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use serde_json::value::RawValue;

use crate::{
    columns,
    location::{self, LedgerLock},
    schema::{self, DatabaseKind},
    tables::{
        build_rows, dead_rows, job_rows, kept_rows, outbox_rows,
        outcome_rows::{self, TaskSet},
        parked_rows,
    },
};

/// Time that a statement waits for another process (a `prune`) to end its transaction.
const BUSY_MAX: Duration = Duration::from_secs(30);
/// Size that the write-ahead log is cut to after a checkpoint.
const WAL_MAX_BYTES: u64 = 64 << 20;

/// A ledger in one SQLite file, or in memory, with the exclusive right to write it.
pub struct SqliteLedger {
    pub(crate) connection: Connection,
    place: LedgerLocation,
    id: LedgerId,
    _lock: Option<LedgerLock>,
}

impl SqliteLedger {
    /// Opens or creates a ledger. A failure leaves nothing behind, except possibly the lock's file.
    ///
    /// # Errors
    /// If the file is not a ledger, is not writable, or is held by another sink.
    pub fn open(place: LedgerLocation) -> Result<Self, LedgerError> {
        let (connection, lock) = match &place {
            LedgerLocation::File(path) => {
                match location::check_file(path) {
                    Ok(()) | Err(LedgerError::Missing { .. }) => {}
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
                (connection.map_err(|source| storage_error(&place, "being made", source))?, None)
            }
        };
        let id =
            load_or_create_id(&connection).map_err(|source| storage_error(&place, "being opened", source))?;
        Ok(Self { connection, place, id, _lock: lock })
    }

    /// Bounds the size of the database to what it has now, as a full disk does. For tests.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    #[doc(hidden)]
    pub fn fill(&mut self) -> Result<(), LedgerError> {
        self.read("being filled", |connection| {
            let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
        })
    }

    fn read<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        read(&self.connection).map_err(|source| storage_error(&self.place, doing, source))
    }
}

impl fmt::Debug for SqliteLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteLedger({})", self.place)
    }
}

impl Ledger for SqliteLedger {
    fn id(&self) -> &LedgerId {
        &self.id
    }

    fn place(&self) -> &LedgerLocation {
        &self.place
    }

    fn commit(&mut self, changes: &Changes<'_>) -> Result<Committed, LedgerError> {
        let mut write = || -> rusqlite::Result<Committed> {
            // Immediate: waits here for another writer, where nothing can be lost by it.
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let committed = write_changes(&transaction, changes)?;
            transaction.commit()?;
            Ok(committed)
        };
        let written = write();
        if written.is_err() && !self.connection.is_autocommit() {
            // BEGIN itself failed after it had begun. The caller drops the ledger anyway.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        written.map_err(|source| storage_error(&self.place, "results are written", source))
    }

    fn job(&mut self, job: JobId) -> Result<Option<StoredJob>, LedgerError> {
        self.read("a job is read", |connection| {
            let Some((key, record)) = job_rows::load(connection, job)? else { return Ok(None) };
            Ok(Some(StoredJob { key, record, builds: build_rows::load(connection, key)? }))
        })
    }

    fn running(&mut self, lane: &Lane) -> Result<Vec<JobRecord>, LedgerError> {
        self.read("jobs are read", |connection| job_rows::load_running(connection, lane))
    }

    fn outcomes(&mut self, job: JobKey) -> Result<SavedOutcomes, LedgerError> {
        self.read("a job is read", |connection| outcome_rows::load(connection, job))
    }

    fn report(&mut self, job: JobKey) -> Result<Option<Box<RawValue>>, LedgerError> {
        self.read("a report is read", |connection| outcome_rows::load_report(connection, job))
    }

    fn reasons(&mut self, job: JobKey, most: usize) -> Result<Vec<(u64, String)>, LedgerError> {
        self.read("failures are read", |connection| outcome_rows::load_reasons(connection, job, most))
    }

    fn failed_tasks(
        &mut self,
        job: JobKey,
        wanted: &BTreeSet<u64>,
        bound: PageBound,
    ) -> Result<Vec<RetryTask>, LedgerError> {
        self.read("failed tasks are read", |connection| {
            outcome_rows::load_retry_tasks(connection, job, wanted, bound)
        })
    }

    fn kept_outputs(
        &mut self,
        job: JobKey,
        from: u64,
        bound: PageBound,
    ) -> Result<Vec<KeptOutputs>, LedgerError> {
        self.read("outputs are read", |connection| kept_rows::load_outputs(connection, job, from, bound))
    }

    fn outbox(
        &mut self,
        target: OutboxTarget,
        after: i64,
        bound: PageBound,
    ) -> Result<Vec<OutboxRow>, LedgerError> {
        self.read("the outbox is read", |connection| outbox_rows::load_page(connection, target, after, bound))
    }

    fn outbox_state(&mut self) -> Result<OutboxState, LedgerError> {
        self.read("the outbox is read", outbox_rows::load_state)
    }

    fn parked(&mut self, job: JobId) -> Result<Vec<Message>, LedgerError> {
        self.read("parked messages are read", |connection| parked_rows::load(connection, job))
    }
}

fn write_changes(transaction: &Transaction<'_>, changes: &Changes<'_>) -> rusqlite::Result<Committed> {
    let Changes { jobs, unparked, parked, dead, settled, outbox } = changes;
    let mut committed = Committed::default();
    for change in jobs {
        committed.keys.push(write_job(transaction, change)?);
    }
    for job in unparked {
        parked_rows::remove(transaction, *job)?;
    }
    for (job, message) in parked {
        parked_rows::insert(transaction, *job, message)?;
    }
    if !parked.is_empty() {
        committed.parked_dropped = parked_rows::drop_oldest(transaction)?;
    }
    for message in dead {
        dead_rows::insert(transaction, message)?;
    }
    if !dead.is_empty() {
        dead_rows::drop_oldest(transaction)?;
    }
    for row in settled {
        outbox_rows::remove(transaction, *row)?;
    }
    for (target, lane, message) in outbox {
        outbox_rows::insert(transaction, *target, lane, message)?;
    }
    Ok(committed)
}

fn write_job(transaction: &Transaction<'_>, change: &JobChange<'_>) -> rusqlite::Result<JobKey> {
    let JobChange { key, record, done, refused, failures, outputs, report, builds } = change;
    let key = job_rows::save(transaction, *key, record)?;
    outcome_rows::save_set(transaction, TaskSet::Done, key, done)?;
    outcome_rows::save_set(transaction, TaskSet::Refused, key, refused)?;
    outcome_rows::save_failures(transaction, key, failures)?;
    kept_rows::insert(transaction, key, outputs)?;
    if let Some(report) = report {
        outcome_rows::save_report(transaction, key, report)?;
    }
    build_rows::add(transaction, key, builds)?;
    Ok(key)
}

fn open_file(path: &Path) -> Result<Connection, LedgerError> {
    let failed = |source| storage_error(&LedgerLocation::File(path.into()), "being opened", source);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    let found = schema::identify(&connection, path)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(failed)? {
        let why = "the operating system opens it for reading only".into();
        return Err(LedgerError::ReadOnly { path: path.into(), why });
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
fn enable_wal(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
    match mode.map_err(|source| storage_error(&LedgerLocation::File(path.into()), "being opened", source))? {
        mode if mode == "wal" => Ok(()),
        mode => Err(LedgerError::NoWriteAheadLog { path: path.into(), mode }),
    }
}

/// Opens a connection that waits for other processes.
pub(crate) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, LedgerError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .and_then(|connection| connection.busy_timeout(BUSY_MAX).map(|()| connection));
    connection.map_err(|source| storage_error(&LedgerLocation::File(path.into()), "being opened", source))
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

pub(crate) fn storage_error(
    place: &LedgerLocation,
    doing: &'static str,
    source: rusqlite::Error,
) -> LedgerError {
    LedgerError::Storage { place: place.clone(), doing, source: Box::new(source) }
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
