//! Outputs that are kept beside the report, and their tasks.

use std::ops::Range;

use gristmill_ledger::{JobKey, KeptOutputs, OutputOrder, OutputsPage, PageBound, StoredOutputs};
use rusqlite::{Connection, Transaction, params};

/// Inserts outputs to be kept.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    job: JobKey,
    outputs: &[KeptOutputs],
) -> rusqlite::Result<()> {
    let mut save = transaction
        .prepare_cached("INSERT INTO outputs (job, first, count, outputs) VALUES (?1, ?2, ?3, ?4)")?;
    let mut save_tasks =
        transaction.prepare_cached("INSERT INTO tasks (job, first, tasks) VALUES (?1, ?2, ?3)")?;
    for KeptOutputs { first, count, outputs, tasks } in outputs {
        save.execute(params![job.0, first, count, outputs])?;
        if let Some(tasks) = tasks {
            save_tasks.execute(params![job.0, first, tasks])?;
        }
    }
    Ok(())
}

/// Loads the next outputs whose first index is at least `from`, without their tasks.
pub(crate) fn load_outputs(
    connection: &Connection,
    job: JobKey,
    from: u64,
    bound: PageBound,
) -> rusqlite::Result<Vec<KeptOutputs>> {
    let mut statement = connection.prepare_cached(
        "SELECT first, count, outputs FROM outputs WHERE job = ?1 AND first >= ?2 ORDER BY first LIMIT ?3",
    )?;
    let mut found = statement.query(params![job.0, from, bound.rows])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let outputs: String = row.get(2)?;
        bytes += outputs.len();
        rows.push(KeptOutputs { first: row.get(0)?, count: row.get(1)?, outputs, tasks: None });
        if bytes >= bound.bytes {
            break;
        }
    }
    Ok(rows)
}

/// Loads a page of outputs with their tasks.
pub(crate) fn load_page(
    connection: &Connection,
    job: JobKey,
    page: OutputsPage,
) -> rusqlite::Result<Vec<StoredOutputs>> {
    let key = match page.order {
        OutputOrder::Split => "first",
        OutputOrder::Arrival => "seq",
    };
    let sql = format!(
        "SELECT outputs.seq, outputs.first, outputs, tasks FROM outputs LEFT JOIN tasks USING (job, first)
         WHERE job = ?1 AND outputs.{key} > ?2 AND outputs.seq <= ?3
         ORDER BY outputs.{key} LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut found =
        statement.query(params![job.0, page.after.unwrap_or(-1), page.last_output, page.bound.rows])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let (outputs, tasks): (String, Option<String>) = (row.get(2)?, row.get(3)?);
        bytes += outputs.len() + tasks.as_ref().map_or(0, String::len);
        rows.push(StoredOutputs { row: row.get(0)?, first: row.get(1)?, outputs, tasks });
        if bytes >= page.bound.bytes {
            break;
        }
    }
    Ok(rows)
}

/// Loads the index ranges of the kept outputs, ascending by their start.
pub(crate) fn load_ranges(connection: &Connection, job: JobKey) -> rusqlite::Result<Vec<Range<u64>>> {
    let mut rows = connection.prepare("SELECT first, count FROM outputs WHERE job = ?1 ORDER BY first")?;
    let ranges = rows.query_map([job.0], |row| {
        let (first, count): (u64, u64) = (row.get(0)?, row.get(1)?);
        Ok(first..first.saturating_add(count))
    })?;
    ranges.collect()
}

/// Loads the number of the last row of all jobs, 0 if there is none. Later rows get higher numbers.
pub(crate) fn load_last_row(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(max(seq), 0) FROM outputs", [], |row| row.get(0))
}

/// True if tasks are kept beside outputs of the job.
pub(crate) fn has_tasks(connection: &Connection, job: JobKey) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM tasks WHERE job = ?1)", [job.0], |row| row.get(0))
}
