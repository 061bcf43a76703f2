//! The tables of a ledger. Any program with SQLite can read them; only a sink writes them.

use std::path::Path;

use gristmill_ledger::{LedgerError, LedgerLocation};
use rusqlite::Connection;

use crate::store::storage_error;

/// The mark of a ledger among SQLite files: `GRML`.
const APPLICATION_ID: i64 = 0x4752_4d4c;
/// The version of the tables below. Other versions are not read: none was ever released.
const SCHEMA_VERSION: i64 = 4;

/// The statements that create a new ledger.
const TABLES_SQL: &str = "
    -- One row: what this ledger is, and what its bounds made it drop.
    CREATE TABLE ledger (
        id TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        parked_dropped INTEGER NOT NULL DEFAULT 0,
        dead_dropped INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    -- One row per job. `reached` is one past the highest index that has an outcome; `stalled_ms` is when the last
    -- outcome came of a job that stalls. `version` and `build` are what its producer said of its code; `round_version` is
    -- the version of the code in the present round.
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        spec TEXT NOT NULL,
        policy TEXT NOT NULL,
        plan TEXT NOT NULL,
        lane TEXT NOT NULL,
        submitted_ms INTEGER NOT NULL,
        keeps_outputs INTEGER NOT NULL,
        round INTEGER NOT NULL,
        state TEXT NOT NULL,
        sealed_total INTEGER,
        sealed_digest TEXT,
        done INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        reached INTEGER NOT NULL,
        duplicates INTEGER NOT NULL,
        late INTEGER NOT NULL,
        busy_us INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        stopped TEXT,
        conclusion TEXT,
        answered INTEGER,
        finished_ms INTEGER,
        stalled_ms INTEGER,
        version INTEGER NOT NULL,
        build TEXT,
        round_version INTEGER NOT NULL
    ) STRICT;

    CREATE INDEX jobs_by_time ON jobs (submitted_ms, id);

    -- Outcomes by the build that made them, '' where the worker did not say.
    CREATE TABLE builds (
        job INTEGER NOT NULL,
        version INTEGER NOT NULL,
        build TEXT NOT NULL,
        counted INTEGER NOT NULL,
        refused INTEGER NOT NULL,
        PRIMARY KEY (job, version, build)
    ) STRICT, WITHOUT ROWID;

    -- Tasks of which an outcome was refused, whether they have got another one since or not: as in `done`.
    CREATE TABLE refused (
        seq INTEGER PRIMARY KEY,
        job INTEGER NOT NULL,
        container INTEGER NOT NULL,
        bits BLOB NOT NULL,
        UNIQUE (job, container)
    ) STRICT;

    CREATE TABLE reports (job INTEGER PRIMARY KEY, report TEXT NOT NULL) STRICT;

    -- Which tasks have an output: one roaring bitmap for each 65,536 indices.
    CREATE TABLE done (
        seq INTEGER PRIMARY KEY,
        job INTEGER NOT NULL,
        container INTEGER NOT NULL,
        bits BLOB NOT NULL,
        UNIQUE (job, container)
    ) STRICT;

    CREATE TABLE failures (
        job INTEGER NOT NULL,
        task INTEGER NOT NULL,
        round INTEGER NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        losses INTEGER NOT NULL,
        worker TEXT,
        payload TEXT,
        PRIMARY KEY (job, task)
    ) STRICT, WITHOUT ROWID;

    -- Outputs of consecutive tasks, as a JSON array; only of jobs that keep them. Rows of a job do not overlap.
    -- Later rows have higher numbers, which a reader tells them by.
    CREATE TABLE outputs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL,
        first INTEGER NOT NULL,
        count INTEGER NOT NULL,
        outputs TEXT NOT NULL,
        UNIQUE (job, first)
    ) STRICT;

    CREATE INDEX outputs_by_job ON outputs (job);

    -- The tasks that outputs came of, as a JSON array beside the row of `outputs` with the same `first`; only of jobs that
    -- keep them.
    CREATE TABLE tasks (
        seq INTEGER PRIMARY KEY,
        job INTEGER NOT NULL,
        first INTEGER NOT NULL,
        tasks TEXT NOT NULL,
        UNIQUE (job, first)
    ) STRICT;

    -- What is to be published; a row goes when the broker has it.
    CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        target TEXT NOT NULL,
        lane TEXT NOT NULL,
        properties TEXT NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX outbox_by_target ON outbox (target, seq);

    -- Messages about jobs that have not been opened here.
    CREATE TABLE parked (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        job TEXT NOT NULL,
        properties TEXT NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX parked_by_job ON parked (job, seq);

    -- Messages that were none of ours.
    CREATE TABLE dead (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        received_ms INTEGER NOT NULL,
        reason TEXT NOT NULL,
        properties TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
";

/// Creates the tables in an empty database.
pub(crate) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "{TABLES_SQL} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
    ))
}

/// The kind of a database.
pub(crate) enum DatabaseKind {
    /// An empty database.
    Empty,
    /// A ledger of this version.
    Ledger,
}

/// Checks that a database is a ledger that this program knows, or empty.
pub(crate) fn identify(connection: &Connection, path: &Path) -> Result<DatabaseKind, LedgerError> {
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let not = |why: &str| LedgerError::NotALedger { path: path.into(), why: why.into() };
    // The first statement that reads the file detects that it is damaged.
    let tables = match number("SELECT count(*) FROM sqlite_schema") {
        Ok(tables) => tables,
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            return Err(not("it is no SQLite file"));
        }
        Err(error) => return Err(storage_error(&LedgerLocation::File(path.into()), "being opened", error)),
    };
    if tables == 0 {
        return Ok(DatabaseKind::Empty);
    }
    if number("PRAGMA application_id")
        .map_err(|error| storage_error(&LedgerLocation::File(path.into()), "being opened", error))?
        != APPLICATION_ID
    {
        return Err(not("it is the SQLite database of another program"));
    }
    match number("PRAGMA user_version")
        .map_err(|error| storage_error(&LedgerLocation::File(path.into()), "being opened", error))?
    {
        SCHEMA_VERSION => Ok(DatabaseKind::Ledger),
        found => Err(LedgerError::UnsupportedVersion { path: path.into(), found, known: SCHEMA_VERSION }),
    }
}
