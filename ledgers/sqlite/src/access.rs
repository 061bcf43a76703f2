//! The readers' side of a ledger file, also while a sink uses it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use gristmill_ledger::{
    DeadMessages, FailureRow, JobKey, JobParts, JobRecord, JobSnapshot, JobsAfter, LedgerAccess, LedgerError,
    LedgerLocation, OutputsPage, ParkedMessages, PruneReport, PruneRule, SavedOutcomes, StoredOutputs,
};
use gristmill_shared::JobId;
use rusqlite::{Connection, OpenFlags};

use crate::{
    location, prune,
    schema::{self, DatabaseKind},
    store::{connect, storage_error},
    tables::{build_rows, dead_rows, job_rows, kept_rows, outcome_rows, parked_rows},
};

/// Access to a ledger file. Each answer is read in one transaction, which ends with it.
pub struct SqliteAccess {
    connection: Connection,
    path: PathBuf,
    place: LedgerLocation,
}

impl SqliteAccess {
    /// Opens a ledger. Creates and changes nothing.
    ///
    /// # Errors
    /// If there is none, or the file is something else.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let connection = connect_existing(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Self { connection, path: path.into(), place: LedgerLocation::File(path.into()) })
    }

    /// Reads within one transaction, so that all of it is as of the same commit.
    fn read<T>(&mut self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        let read = || {
            let transaction = self.connection.transaction()?;
            read(&transaction)
        };
        read().map_err(|source| storage_error(&self.place, "being read", source))
    }
}

impl fmt::Debug for SqliteAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteAccess({})", self.place)
    }
}

impl LedgerAccess for SqliteAccess {
    fn place(&self) -> &LedgerLocation {
        &self.place
    }

    fn jobs(&mut self, after: Option<JobsAfter>, most: usize) -> Result<Vec<JobRecord>, LedgerError> {
        self.read(|connection| job_rows::load_page(connection, after, most))
    }

    fn job(&mut self, job: JobId, parts: JobParts) -> Result<Option<JobSnapshot>, LedgerError> {
        self.read(|connection| match job_rows::load(connection, job)? {
            Some((key, record)) => load_snapshot(connection, key, record, parts).map(Some),
            None => Ok(None),
        })
    }

    fn failures(
        &mut self,
        job: JobKey,
        after: Option<u64>,
        most: usize,
    ) -> Result<Vec<FailureRow>, LedgerError> {
        self.read(|connection| outcome_rows::load_page(connection, job, after, most))
    }

    fn outputs(&mut self, job: JobKey, page: OutputsPage) -> Result<Vec<StoredOutputs>, LedgerError> {
        self.read(|connection| kept_rows::load_page(connection, job, page))
    }

    fn parked(&mut self) -> Result<ParkedMessages, LedgerError> {
        self.read(parked_rows::count_by_job)
    }

    fn dead(&mut self) -> Result<DeadMessages, LedgerError> {
        self.read(dead_rows::load_all)
    }

    fn prune(&mut self, rule: PruneRule) -> Result<PruneReport, LedgerError> {
        let mut connection = connect_existing(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let report = prune::delete_ended(&mut connection, rule);
        report.map_err(|source| storage_error(&self.place, "jobs are forgotten", source))
    }
}

fn connect_existing(path: &Path, flags: OpenFlags) -> Result<Connection, LedgerError> {
    location::check_file(path)?;
    let connection = connect(path, flags)?;
    match schema::identify(&connection, path)? {
        DatabaseKind::Ledger => Ok(connection),
        DatabaseKind::Empty => {
            Err(LedgerError::NotALedger { path: path.into(), why: "it is an empty file".into() })
        }
    }
}

fn load_snapshot(
    connection: &Connection,
    key: JobKey,
    record: JobRecord,
    parts: JobParts,
) -> rusqlite::Result<JobSnapshot> {
    let is_view = parts == JobParts::View;
    let wants_outcomes = match parts {
        JobParts::View => record.stalled_ms.is_some() || outcome_rows::has_refused(connection, key)?,
        JobParts::Proof => true,
        JobParts::Record => false,
    };
    let SavedOutcomes { done, failed, refused } =
        if wants_outcomes { outcome_rows::load(connection, key)? } else { SavedOutcomes::default() };
    let kept = if parts == JobParts::Proof { kept_rows::load_ranges(connection, key)? } else { Vec::new() };
    Ok(JobSnapshot {
        key,
        record,
        builds: build_rows::load(connection, key)?,
        report: if is_view { outcome_rows::load_report(connection, key)? } else { None },
        done,
        failed,
        refused,
        kept,
        has_kept_tasks: is_view && kept_rows::has_tasks(connection, key)?,
        last_output: kept_rows::load_last_row(connection)?,
        dead_messages: if is_view { dead_rows::count_all(connection)? } else { 0 },
    })
}
