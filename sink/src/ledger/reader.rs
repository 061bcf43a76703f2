//! Read access to a ledger, also while a sink uses it.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use gristmill_shared::{JobId, Keep, Message, TaskIndex, wire::MISSING_MAX_RANGES};
use rusqlite::{Connection, OpenFlags};
use serde_json::value::RawValue;

use super::{
    DeadMessages, DeadRow, ExportRow, FailureRow, JobRecord, JobSummary, JobView, LedgerLocation,
    MissingTasks, OutputPass, ParkedJob, ParkedMessages, Verification,
    builds::Builds,
    columns::{parse_json, parse_text},
    connect, ledger_error, listing, location,
    message_columns::StoredMessage,
    outcome_rows::{self, TaskSet},
    schema, verify,
};
use crate::{
    SinkError,
    index_set::{IndexSet, gaps},
};

/// Reads a ledger, also while a sink uses it: every answer is as of one commit. All methods block.
#[derive(Debug)]
pub struct LedgerReader {
    connection: Connection,
    path: PathBuf,
}

impl LedgerReader {
    /// Opens a ledger. Creates and changes nothing.
    ///
    /// # Errors
    /// If there is none, or the file is something else.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        location::check_file(path)?;
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        match schema::identify(&connection, path)? {
            schema::DatabaseKind::Ledger => Ok(Self { connection, path: path.into() }),
            schema::DatabaseKind::Empty => {
                Err(SinkError::NotALedger { path: path.into(), why: "it is an empty file".into() })
            }
        }
    }

    /// Returns all jobs, the newest first.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobSummary>, SinkError> {
        let records = self.read(JobRecord::load_all)?;
        Ok(records.iter().map(|(_, record)| JobSummary::from(record)).collect())
    }

    /// Returns one job, if the ledger has it.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn job(&self, job: JobId) -> Result<Option<JobView>, SinkError> {
        self.read(|connection| match JobRecord::load(connection, job)? {
            Some((seq, record)) => load_view(connection, seq, record).map(Some),
            None => Ok(None),
        })
    }

    /// Visits the failed tasks of a job by index, one by one. A slow `each` does not block a sink,
    /// but its write-ahead log beside the ledger grows.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn failures(
        &self,
        job: JobId,
        each: &mut dyn FnMut(FailureRow) -> ControlFlow<()>,
    ) -> Result<(), SinkError> {
        let (seq, _) = self.find_job(job)?;
        self.read(|connection| listing::visit_failures(connection, seq, each).map(drop))
    }

    /// Visits the kept outputs of a job, one by one: in the order of the tasks, or in the order of
    /// their arrival. There are none if the job keeps none. `each` may be slow, as in
    /// [`LedgerReader::failures`].
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn outputs(
        &self,
        job: JobId,
        ordered: bool,
        each: &mut dyn FnMut(TaskIndex, &RawValue) -> ControlFlow<()>,
    ) -> Result<(), SinkError> {
        self.output_rows(job, ordered, &mut [&mut |row| each(row.index, row.output)])
    }

    /// Visits the kept outputs of a job with their tasks, as [`LedgerReader::outputs`] does, once
    /// for each of `passes` in turn. All passes see the same commit. The task is `None` if only its
    /// output is kept.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn output_rows(
        &self,
        job: JobId,
        ordered: bool,
        passes: &mut [OutputPass<'_>],
    ) -> Result<(), SinkError> {
        let (seq, _) = self.find_job(job)?;
        self.read(|connection| {
            passes
                .iter_mut()
                .try_for_each(|each| listing::visit_outputs(connection, seq, ordered, *each).map(drop))
        })
    }

    /// Visits everything about a job as of one commit, in the order of [`ExportRow`]. `each` may be
    /// slow, as in [`LedgerReader::failures`].
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn export(
        &self,
        job: JobId,
        each: &mut dyn FnMut(ExportRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), SinkError> {
        let found = self.read(|connection| {
            let Some((seq, record)) = JobRecord::load(connection, job)? else { return Ok(None) };
            let view = load_view(connection, seq, record)?;
            listing::export(connection, seq, view, each).map(Some)
        })?;
        found.ok_or_else(|| self.no_such_job(job))
    }

    /// Proves from the stored rows that every task of the job has exactly one outcome, or reports
    /// what is missing.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn verify(&self, job: JobId) -> Result<Verification, SinkError> {
        let verification = self.read(|connection| verify::verify(connection, job))?;
        verification.ok_or_else(|| self.no_such_job(job))
    }

    /// Returns the parked messages: those about jobs that the ledger does not know.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn parked(&self) -> Result<ParkedMessages, SinkError> {
        self.read(|connection| {
            let mut rows = connection.prepare(
                "SELECT job, count(*), sum(length(body)) FROM parked GROUP BY job ORDER BY min(seq)",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(ParkedJob { job: parse_text(row, 0)?, messages: row.get(1)?, bytes: row.get(2)? })
            };
            let jobs = rows.query_map([], row)?.collect::<Result<_, _>>()?;
            let dropped = connection.query_row("SELECT parked_dropped FROM ledger", [], |row| row.get(0))?;
            Ok(ParkedMessages { jobs, dropped })
        })
    }

    /// Returns the recorded dead messages.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn dead(&self) -> Result<DeadMessages, SinkError> {
        self.read(|connection| {
            let mut rows = connection
                .prepare("SELECT received_ms, reason, properties, bytes, body FROM dead ORDER BY seq DESC")?;
            let row = |row: &rusqlite::Row<'_>| {
                let StoredMessage(Message { id, form, job, app, headers, .. }) = parse_json(row, 2)?;
                let (received_ms, reason, bytes) = (row.get(0)?, row.get(1)?, row.get(3)?);
                let body = String::from_utf8_lossy(row.get_ref(4)?.as_blob()?).into_owned();
                Ok(DeadRow { received_ms, reason, origin: headers.origin, id, form, app, job, bytes, body })
            };
            let messages = rows.query_map([], row)?.collect::<Result<_, _>>()?;
            let dropped = connection.query_row("SELECT dead_dropped FROM ledger", [], |row| row.get(0))?;
            Ok(DeadMessages { messages, dropped })
        })
    }

    fn find_job(&self, job: JobId) -> Result<(i64, JobRecord), SinkError> {
        self.read(|connection| JobRecord::load(connection, job))?.ok_or_else(|| self.no_such_job(job))
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
        read().map_err(|source| ledger_error(&LedgerLocation::File(self.path.clone()), "being read", source))
    }
}

fn load_view(connection: &Connection, seq: i64, record: JobRecord) -> rusqlite::Result<JobView> {
    let report = outcome_rows::load_report(connection, seq)?;
    let end = record.total().unwrap_or(record.counts.reached);
    let refused = outcome_rows::load_set(connection, TaskSet::Refused, seq)?;
    let (mut missing, mut refused_tasks) = (None, MissingTasks::default());
    if record.stalled_ms.is_some() || refused.len() > 0 {
        let (done, failed) = (
            outcome_rows::load_set(connection, TaskSet::Done, seq)?,
            outcome_rows::load_failed(connection, seq)?,
        );
        refused_tasks = unresolved_tasks(&refused, &done, &failed);
        missing = record.stalled_ms.map(|_| {
            let (ranges, tasks) = gaps(&done, &failed, 0..end, MISSING_MAX_RANGES);
            MissingTasks { tasks, ranges }
        });
    }
    let builds = Builds::load(connection, seq)?.shares();
    let dead = "SELECT (SELECT count(*) FROM dead) + (SELECT dead_dropped FROM ledger)";
    let dead = connection.query_row(dead, [], |row| row.get(0))?;
    let has_tasks = "SELECT EXISTS (SELECT 1 FROM tasks WHERE job = ?1)";
    let keeps_tasks = record.opened.policy.keep == Some(Keep::Tasks)
        || connection.query_row(has_tasks, [seq], |row| row.get(0))?; // by its kind
    Ok(JobView::new(record, report, missing, refused_tasks, builds, keeps_tasks, dead))
}

/// Returns the refused tasks that have no outcome: their first ranges, and their number.
fn unresolved_tasks(refused: &IndexSet, done: &IndexSet, failed: &BTreeSet<u64>) -> MissingTasks {
    let mut tasks = MissingTasks::default();
    for range in refused.ranges() {
        let room = MISSING_MAX_RANGES - tasks.ranges.len();
        let (ranges, number) = gaps(done, failed, range, room);
        tasks.tasks += number;
        tasks.ranges.extend(ranges);
    }
    tasks
}
