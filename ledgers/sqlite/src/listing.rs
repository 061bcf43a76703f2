//! Lists that may have millions of entries: failures and outputs, visited one by one.

use std::ops::ControlFlow;

use gristmill_shared::{Round, TaskIndex};
use rusqlite::{Connection, Row};
use serde_json::value::RawValue;

use super::{
    ExportRow, FailureRow, JobView, OutputRow,
    columns::{conversion_error, parse_text},
};

/// Visits the failed tasks of a job by index, until `each` breaks.
pub(super) fn visit_failures(
    connection: &Connection,
    job: i64,
    each: &mut dyn FnMut(FailureRow) -> ControlFlow<()>,
) -> rusqlite::Result<ControlFlow<()>> {
    let mut rows = connection.prepare(
        "SELECT task, reason, attempts, losses, worker, round, payload FROM failures WHERE job = ?1 ORDER BY task",
    )?;
    let mut rows = rows.query([job])?;
    while let Some(row) = rows.next()? {
        if each(read_failure(row)?).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
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

/// Visits the kept outputs of a job in the order of the split or of their arrival, until `each`
/// breaks.
pub(super) fn visit_outputs(
    connection: &Connection,
    job: i64,
    ordered: bool,
    each: &mut dyn FnMut(OutputRow<'_>) -> ControlFlow<()>,
) -> rusqlite::Result<ControlFlow<()>> {
    let order = if ordered { "first" } else { "seq" };
    let sql = format!(
        "SELECT outputs.first, outputs, tasks FROM outputs LEFT JOIN tasks USING (job, first)
         WHERE job = ?1 ORDER BY outputs.{order}"
    );
    let mut rows = connection.prepare(&sql)?;
    let mut rows = rows.query([job])?;
    while let Some(row) = rows.next()? {
        let first: u64 = row.get(0)?;
        let outputs: Vec<&RawValue> =
            serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|error| conversion_error(1, error))?;
        let tasks = row.get_ref(2)?.as_str_or_null()?;
        let tasks: Vec<&RawValue> =
            serde_json::from_str(tasks.unwrap_or("[]")).map_err(|error| conversion_error(2, error))?;
        let mut tasks = tasks.into_iter();
        for (index, output) in (first..).zip(outputs) {
            let task = tasks.next();
            if each(OutputRow { index: TaskIndex(index), task, output }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Visits everything about a job, in the order of [`ExportRow`], until `each` breaks.
pub(super) fn export(
    connection: &Connection,
    job: i64,
    view: JobView,
    each: &mut dyn FnMut(ExportRow<'_>) -> ControlFlow<()>,
) -> rusqlite::Result<()> {
    let (mut failures, mut outputs) = (0, 0);
    let mut goes_on = each(ExportRow::Job(Box::new(view)));
    if goes_on.is_continue() {
        goes_on = visit_failures(connection, job, &mut |failure| {
            failures += 1;
            each(ExportRow::Failure(failure))
        })?;
    }
    if goes_on.is_continue() {
        goes_on = visit_outputs(connection, job, true, &mut |row| {
            outputs += 1;
            each(ExportRow::Output(row))
        })?;
    }
    if goes_on.is_continue() {
        let _ = each(ExportRow::End { failures, outputs }); // the last row
    }
    Ok(())
}
