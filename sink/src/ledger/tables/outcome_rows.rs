//! Outcomes in the ledger: the tasks done, the failures with their reasons, the report, and the
//! kept outputs.

use std::collections::BTreeSet;

use gristmill_shared::{Round, WorkerId};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::value::RawValue;

use crate::{
    index_set::IndexSet,
    ledger::columns::{conversion_error, parse_json},
};

/// A task that failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredFailure {
    pub(crate) round: Round,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    pub(crate) losses: u32,
    /// The last worker that ran it, if known.
    pub(crate) worker: Option<WorkerId>,
    /// The task itself, if known.
    pub(crate) payload: Option<String>,
}

/// Outputs of consecutive tasks, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptOutputs {
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// A JSON array.
    pub(crate) outputs: String,
    /// The tasks themselves as a JSON array, if they are kept.
    pub(crate) tasks: Option<String>,
}

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

/// Loads a set of tasks.
pub(crate) fn load_set(connection: &Connection, set: TaskSet, job: i64) -> rusqlite::Result<IndexSet> {
    let sql = format!("SELECT container, bits FROM {} WHERE job = ?1", set.table());
    let mut set = IndexSet::default();
    let mut rows = connection.prepare_cached(&sql)?;
    let mut rows = rows.query([job])?;
    while let Some(row) = rows.next()? {
        set.load(row.get(0)?, row.get_ref(1)?.as_blob()?).map_err(|error| conversion_error(1, error))?;
    }
    Ok(set)
}

/// Loads the indices of the failed tasks.
pub(crate) fn load_failed(connection: &Connection, job: i64) -> rusqlite::Result<BTreeSet<u64>> {
    let mut rows = connection.prepare_cached("SELECT task FROM failures WHERE job = ?1")?;
    rows.query_map([job], |row| row.get(0))?.collect()
}

/// Loads the report so far; `None` before the first output.
pub(crate) fn load_report(connection: &Connection, job: i64) -> rusqlite::Result<Option<Box<RawValue>>> {
    let mut rows = connection.prepare_cached("SELECT report FROM reports WHERE job = ?1")?;
    rows.query_row([job], |row| parse_json(row, 0)).optional()
}

/// Loads the first `most` failed tasks with their reasons, in the order of the split.
pub(crate) fn load_reasons(
    connection: &Connection,
    job: i64,
    most: usize,
) -> rusqlite::Result<Vec<(u64, String)>> {
    let mut rows = connection
        .prepare_cached("SELECT task, reason FROM failures WHERE job = ?1 ORDER BY task LIMIT ?2")?;
    rows.query_map(params![job, most], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Visits the data of the failed tasks that is needed to send them again: index, attempts and
/// payload, in the order of the split, until `each` returns false.
pub(crate) fn load_payloads(
    connection: &Connection,
    job: i64,
    each: &mut dyn FnMut(u64, u32, Option<&str>) -> bool,
) -> rusqlite::Result<()> {
    let mut rows = connection
        .prepare_cached("SELECT task, attempts, payload FROM failures WHERE job = ?1 ORDER BY task")?;
    let mut rows = rows.query([job])?;
    while let Some(row) = rows.next()? {
        if !each(row.get(0)?, row.get(1)?, row.get_ref(2)?.as_str_or_null()?) {
            break;
        }
    }
    Ok(())
}

/// Writes containers of a set of tasks.
pub(crate) fn save_set(
    transaction: &Transaction<'_>,
    set: TaskSet,
    job: i64,
    containers: impl Iterator<Item = (u64, Vec<u8>)>,
) -> rusqlite::Result<()> {
    let mut save = transaction.prepare_cached(&format!(
        "INSERT INTO {} (job, container, bits) VALUES (?1, ?2, ?3)
         ON CONFLICT (job, container) DO UPDATE SET bits = excluded.bits",
        set.table()
    ))?;
    for (container, bits) in containers {
        save.execute(params![job, container, bits])?;
    }
    Ok(())
}

/// Writes failures, and deletes those that an outcome or a new round replaced.
pub(crate) fn save_failures(
    transaction: &Transaction<'_>,
    job: i64,
    changes: impl Iterator<Item = (u64, Option<StoredFailure>)>,
) -> rusqlite::Result<()> {
    let mut save = transaction.prepare_cached(
        "INSERT OR REPLACE INTO failures (job, task, round, reason, attempts, losses, worker, payload)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut remove = transaction.prepare_cached("DELETE FROM failures WHERE job = ?1 AND task = ?2")?;
    for (task, failure) in changes {
        match failure {
            None => remove.execute(params![job, task])?,
            Some(StoredFailure { round, reason, attempts, losses, worker, payload }) => {
                let worker = worker.as_ref().map(WorkerId::as_str);
                save.execute(params![job, task, round.0, reason, attempts, losses, worker, payload])?
            }
        };
    }
    Ok(())
}

/// Inserts outputs to be kept.
pub(crate) fn save_outputs(
    transaction: &Transaction<'_>,
    job: i64,
    outputs: impl Iterator<Item = KeptOutputs>,
) -> rusqlite::Result<()> {
    let mut save = transaction
        .prepare_cached("INSERT INTO outputs (job, first, count, outputs) VALUES (?1, ?2, ?3, ?4)")?;
    let mut save_tasks =
        transaction.prepare_cached("INSERT INTO tasks (job, first, tasks) VALUES (?1, ?2, ?3)")?;
    for KeptOutputs { first, count, outputs, tasks } in outputs {
        save.execute(params![job, first, count, outputs])?;
        if let Some(tasks) = tasks {
            save_tasks.execute(params![job, first, tasks])?;
        }
    }
    Ok(())
}

/// Replaces the report.
pub(crate) fn save_report(
    transaction: &Transaction<'_>,
    job: i64,
    report: &RawValue,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO reports (job, report) VALUES (?1, ?2)")?
        .execute(params![job, report.get()])?;
    Ok(())
}
