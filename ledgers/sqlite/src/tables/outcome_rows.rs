//! Outcomes of a job: the tasks done, the failures with their reasons, and the report.

use std::collections::BTreeSet;

use gristmill_ledger::{FailureRow, IndexSet, JobKey, PageBound, RetryTask, SavedOutcomes, StoredFailure};
use gristmill_shared::{Round, TaskIndex, WorkerId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::value::RawValue;

use crate::columns::{conversion_error, parse_json, parse_text};

/// A set of tasks, in the containers of a table of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TaskSet {
    /// The tasks with an output.
    Done,
    /// The tasks of which an outcome was refused.
    Refused,
}

impl TaskSet {
    fn table(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// Loads the outcomes of a job.
pub(crate) fn load(connection: &Connection, job: JobKey) -> rusqlite::Result<SavedOutcomes> {
    Ok(SavedOutcomes {
        done: load_set(connection, TaskSet::Done, job)?,
        failed: load_failed(connection, job)?,
        refused: load_set(connection, TaskSet::Refused, job)?,
    })
}

/// True if an outcome of any task was refused.
pub(crate) fn has_refused(connection: &Connection, job: JobKey) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM refused WHERE job = ?1)", [job.0], |row| row.get(0))
}

fn load_set(connection: &Connection, set: TaskSet, job: JobKey) -> rusqlite::Result<IndexSet> {
    let sql = format!("SELECT container, bits FROM {} WHERE job = ?1", set.table());
    let mut set = IndexSet::default();
    let mut rows = connection.prepare_cached(&sql)?;
    let mut rows = rows.query([job.0])?;
    while let Some(row) = rows.next()? {
        set.load(row.get(0)?, row.get_ref(1)?.as_blob()?).map_err(|error| conversion_error(1, error))?;
    }
    Ok(set)
}

/// Loads the indices of the failed tasks.
fn load_failed(connection: &Connection, job: JobKey) -> rusqlite::Result<BTreeSet<u64>> {
    let mut rows = connection.prepare_cached("SELECT task FROM failures WHERE job = ?1")?;
    rows.query_map([job.0], |row| row.get(0))?.collect()
}

/// Loads the report so far; `None` before the first output.
pub(crate) fn load_report(connection: &Connection, job: JobKey) -> rusqlite::Result<Option<Box<RawValue>>> {
    let mut rows = connection.prepare_cached("SELECT report FROM reports WHERE job = ?1")?;
    rows.query_row([job.0], |row| parse_json(row, 0)).optional()
}

/// Loads the first `most` failed tasks with their reasons, in the order of the split.
pub(crate) fn load_reasons(
    connection: &Connection,
    job: JobKey,
    most: usize,
) -> rusqlite::Result<Vec<(u64, String)>> {
    let mut rows = connection
        .prepare_cached("SELECT task, reason FROM failures WHERE job = ?1 ORDER BY task LIMIT ?2")?;
    rows.query_map(params![job.0, most], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Loads failed tasks whose payload is known, in the order of the split: those that are `wanted`,
/// or all if that is empty.
pub(crate) fn load_retry_tasks(
    connection: &Connection,
    job: JobKey,
    wanted: &BTreeSet<u64>,
    bound: PageBound,
) -> rusqlite::Result<Vec<RetryTask>> {
    let mut rows = connection
        .prepare_cached("SELECT task, attempts, payload FROM failures WHERE job = ?1 ORDER BY task")?;
    let mut rows = rows.query([job.0])?;
    let (mut tasks, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let index = row.get(0)?;
        let Some(payload) = row.get_ref(2)?.as_str_or_null()? else { continue };
        if wanted.is_empty() || wanted.contains(&index) {
            bytes += payload.len();
            tasks.push(RetryTask { index, attempts: row.get(1)?, payload: payload.to_owned() });
            if tasks.len() >= bound.rows || bytes >= bound.bytes {
                break;
            }
        }
    }
    Ok(tasks)
}

/// Loads the `most` failed tasks that follow the index `after`, ascending.
pub(crate) fn load_page(
    connection: &Connection,
    job: JobKey,
    after: Option<u64>,
    most: usize,
) -> rusqlite::Result<Vec<FailureRow>> {
    let mut rows = connection.prepare_cached(
        "SELECT task, reason, attempts, losses, worker, round, payload FROM failures
         WHERE job = ?1 AND task > ?2 ORDER BY task LIMIT ?3",
    )?;
    let after = after.map_or(-1, |after| i64::try_from(after).unwrap_or(i64::MAX));
    rows.query_map(params![job.0, after, most], read_failure)?.collect()
}

fn read_failure(row: &Row<'_>) -> rusqlite::Result<FailureRow> {
    let worker = row.get_ref(4)?.as_str_or_null()?.map(|_| parse_text(row, 4)).transpose()?;
    let payload: Option<String> = row.get(6)?;
    Ok(FailureRow {
        index: TaskIndex(row.get(0)?),
        reason: row.get(1)?,
        attempts: row.get(2)?,
        losses: row.get(3)?,
        worker,
        round: Round(row.get(5)?),
        task: payload.map(RawValue::from_string).transpose().map_err(|error| conversion_error(6, error))?,
    })
}

/// Writes containers of a set of tasks.
pub(crate) fn save_set(
    transaction: &Transaction<'_>,
    set: TaskSet,
    job: JobKey,
    containers: &[(u64, Vec<u8>)],
) -> rusqlite::Result<()> {
    let mut save = transaction.prepare_cached(&format!(
        "INSERT INTO {} (job, container, bits) VALUES (?1, ?2, ?3)
         ON CONFLICT (job, container) DO UPDATE SET bits = excluded.bits",
        set.table()
    ))?;
    for (container, bits) in containers {
        save.execute(params![job.0, container, bits])?;
    }
    Ok(())
}

/// Writes failures, and deletes those that an outcome or a new round replaced.
pub(crate) fn save_failures(
    transaction: &Transaction<'_>,
    job: JobKey,
    changes: &[(u64, Option<StoredFailure>)],
) -> rusqlite::Result<()> {
    let mut save = transaction.prepare_cached(
        "INSERT OR REPLACE INTO failures (job, task, round, reason, attempts, losses, worker, payload)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut remove = transaction.prepare_cached("DELETE FROM failures WHERE job = ?1 AND task = ?2")?;
    for (task, failure) in changes {
        match failure {
            None => remove.execute(params![job.0, task])?,
            Some(StoredFailure { round, reason, attempts, losses, worker, payload }) => {
                let worker = worker.as_ref().map(WorkerId::as_str);
                save.execute(params![job.0, task, round.0, reason, attempts, losses, worker, payload])?
            }
        };
    }
    Ok(())
}

/// Replaces the report.
pub(crate) fn save_report(
    transaction: &Transaction<'_>,
    job: JobKey,
    report: &RawValue,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO reports (job, report) VALUES (?1, ?2)")?
        .execute(params![job.0, report.get()])?;
    Ok(())
}
