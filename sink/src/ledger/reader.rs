//! Reads a ledger, also while a sink works with it.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use gristmill_shared::{JobId, TaskIndex};
use rusqlite::{Connection, OpenFlags};
use serde_json::value::RawValue;

use super::{
    DeadLetters, DeadRow, FailureRow, JobSummary, JobView, LedgerPlace, ParkedJob, ParkedMessages, Record,
    Verification,
    columns::{conversion, json, text},
    connect, failed,
    letter::Properties,
    outcomes, place, schema, verify,
};
use crate::SinkError;

/// Reads a ledger, also while a sink works with it: every answer is as of one commit. All methods block.
#[derive(Debug)]
pub struct LedgerReader {
    connection: Connection,
    path: PathBuf,
}

impl LedgerReader {
    /// Opens a ledger; makes and changes nothing.
    ///
    /// # Errors
    /// If there is none, or it is something else.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        place::inspect(path)?;
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        match schema::look(&connection, path)? {
            schema::Found::Ledger => Ok(Self { connection, path: path.into() }),
            schema::Found::Empty => {
                Err(SinkError::NotALedger { path: path.into(), why: "it is an empty file".into() })
            }
        }
    }

    /// All jobs, the newest first.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobSummary>, SinkError> {
        let records = self.read(Record::load_all)?;
        Ok(records.iter().map(|(_, record)| JobSummary::from(record)).collect())
    }

    /// One job, if the ledger has it.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn job(&self, job: JobId) -> Result<Option<JobView>, SinkError> {
        self.read(|connection| {
            let Some((seq, record)) = Record::load(connection, job)? else { return Ok(None) };
            let report = outcomes::load_report(connection, seq)?;
            Ok(Some(JobView::new(record, report)))
        })
    }

    /// The tasks of a job that failed, by index.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn failures(&self, job: JobId) -> Result<Vec<FailureRow>, SinkError> {
        let (seq, _) = self.find(job)?;
        self.read(|connection| {
            let mut rows = connection.prepare(
                "SELECT task, reason, attempts, losses, round, payload FROM failures WHERE job = ?1 ORDER BY task",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                let payload: Option<String> = row.get(5)?;
                Ok(FailureRow {
                    index: TaskIndex(row.get(0)?),
                    reason: row.get(1)?,
                    attempts: row.get(2)?,
                    losses: row.get(3)?,
                    round: gristmill_shared::Round(row.get(4)?),
                    task: payload.map(RawValue::from_string).transpose().map_err(|error| conversion(5, error))?,
                })
            };
            rows.query_map([seq], row)?.collect()
        })
    }

    /// Hands over the outputs that were kept of a job, one by one: in the order of the tasks, or in the order of their
    /// arrival. A job that keeps none has none. While `each` takes its time, a sink goes on, but its write-ahead log
    /// beside the ledger grows.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn outputs(
        &self,
        job: JobId,
        ordered: bool,
        each: &mut dyn FnMut(TaskIndex, &RawValue) -> ControlFlow<()>,
    ) -> Result<(), SinkError> {
        let (seq, _) = self.find(job)?;
        let order = if ordered { "first" } else { "seq" };
        self.read(|connection| {
            let sql = format!("SELECT first, outputs FROM outputs WHERE job = ?1 ORDER BY {order}");
            let mut rows = connection.prepare(&sql)?;
            let mut rows = rows.query([seq])?;
            while let Some(row) = rows.next()? {
                let first: u64 = row.get(0)?;
                let outputs: Vec<&RawValue> =
                    serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|error| conversion(1, error))?;
                for (index, output) in (first..).zip(outputs) {
                    if each(TaskIndex(index), output).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    /// Proves from what is stored that every task of the job has exactly one outcome, or says what is missing.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn verify(&self, job: JobId) -> Result<Verification, SinkError> {
        let verification = self.read(|connection| verify::verify(connection, job))?;
        verification.ok_or_else(|| self.no_such_job(job))
    }

    /// Messages about jobs that the ledger does not know.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn parked(&self) -> Result<ParkedMessages, SinkError> {
        self.read(|connection| {
            let mut rows = connection.prepare(
                "SELECT job, count(*), sum(length(body)) FROM parked GROUP BY job ORDER BY min(seq)",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(ParkedJob { job: text(row, 0)?, messages: row.get(1)?, bytes: row.get(2)? })
            };
            let jobs = rows.query_map([], row)?.collect::<Result<_, _>>()?;
            let dropped = connection.query_row("SELECT parked_dropped FROM ledger", [], |row| row.get(0))?;
            Ok(ParkedMessages { jobs, dropped })
        })
    }

    /// Messages that were none of ours.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn dead(&self) -> Result<DeadLetters, SinkError> {
        self.read(|connection| {
            let mut rows = connection
                .prepare("SELECT received_ms, reason, properties, bytes, body FROM dead ORDER BY seq DESC")?;
            let row = |row: &rusqlite::Row<'_>| {
                let Properties { id, form, job, app, origin, .. } = json(row, 2)?;
                let (received_ms, reason, bytes) = (row.get(0)?, row.get(1)?, row.get(3)?);
                let body = String::from_utf8_lossy(row.get_ref(4)?.as_blob()?).into_owned();
                Ok(DeadRow { received_ms, reason, origin, id, form, app, job, bytes, body })
            };
            let messages = rows.query_map([], row)?.collect::<Result<_, _>>()?;
            let dropped = connection.query_row("SELECT dead_dropped FROM ledger", [], |row| row.get(0))?;
            Ok(DeadLetters { messages, dropped })
        })
    }

    fn find(&self, job: JobId) -> Result<(i64, Record), SinkError> {
        self.read(|connection| Record::load(connection, job))?.ok_or_else(|| self.no_such_job(job))
    }

    fn no_such_job(&self, job: JobId) -> SinkError {
        SinkError::NoSuchJob { path: self.path.clone(), job }
    }

    /// Reads within one transaction, so that all of it is as of the same commit.
    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, SinkError> {
        let read = || {
            let transaction = self.connection.unchecked_transaction()?;
            read(&transaction)
        };
        read().map_err(|source| failed(&LedgerPlace::File(self.path.clone()), "being read", source))
    }
}
