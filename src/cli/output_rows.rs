//! `sink outputs`: prints the outputs of a job as lines of text, of JSON, or of CSV.

use std::{cell::RefCell, ops::ControlFlow};

use gristmill_ledger::{LedgerError, LedgerReader, OutputRow};
use gristmill_shared::JobId;

use super::{CommandResult, csv::CsvColumns, stdout::StdoutLines};
use crate::{Exit, exit::Failure};

/// The format of a printed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    /// Index, tab, optionally task and tab, output.
    Text,
    /// One object a line.
    Json,
    /// A table with a header line.
    Csv,
}

/// The rows and columns to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputSelection {
    pub(crate) job: JobId,
    /// True for the order of the split, false for the order of arrival.
    pub(crate) ordered: bool,
    /// True to print the tasks as well.
    pub(crate) with_tasks: bool,
}

pub(crate) fn print_outputs(
    ledger: &mut LedgerReader,
    selection: OutputSelection,
    format: OutputFormat,
) -> CommandResult {
    let OutputSelection { job, with_tasks, .. } = selection;
    if let Some(view) = ledger.job(job)? {
        if !view.keeps_outputs {
            return Err(Failure::usage(format_args!(
                "job {job} keeps no outputs, only its report (hint: see `sink show {job}`; submit with --keep outputs to have \
                 them)"
            )));
        }
        if with_tasks && !view.keeps_tasks {
            return Err(Failure::usage(format_args!(
                "job {job} keeps its outputs without their tasks (hint: leave out --with-tasks; submit with --keep tasks to \
                 have both)"
            )));
        }
    }
    let mut out = StdoutLines::new();
    match format {
        OutputFormat::Text => write_text(ledger, selection, &mut out)?,
        OutputFormat::Json => {
            let mut each = |row: OutputRow<'_>| {
                out.write_json(&OutputRow { task: row.task.filter(|_| with_tasks), ..row })
            };
            ledger.output_rows(job, selection.ordered, &mut [&mut each])?;
        }
        OutputFormat::Csv => write_csv(ledger, selection, &mut out)?,
    }
    out.finish()?;
    Ok(Exit::Ok)
}

fn write_text(
    ledger: &mut LedgerReader,
    selection: OutputSelection,
    out: &mut StdoutLines,
) -> Result<(), LedgerError> {
    let mut each = |OutputRow { index, task, output }: OutputRow<'_>| {
        if selection.with_tasks {
            let task = task.map_or("null", |task| task.get());
            out.write_line(format_args!("{index}\t{task}\t{output}"))
        } else {
            out.write_line(format_args!("{index}\t{output}"))
        }
    };
    ledger.output_rows(selection.job, selection.ordered, &mut [&mut each])
}

/// Prints CSV. Reads all rows twice: the columns must be known before the first line.
fn write_csv(
    ledger: &mut LedgerReader,
    selection: OutputSelection,
    out: &mut StdoutLines,
) -> Result<(), LedgerError> {
    let columns = RefCell::new((CsvColumns::new("task"), CsvColumns::new("output")));
    let mut learn = |row: OutputRow<'_>| {
        let (tasks, outputs) = &mut *columns.borrow_mut();
        row.task.into_iter().for_each(|task| tasks.add_columns(task));
        outputs.add_columns(row.output);
        ControlFlow::Continue(())
    };
    let mut named = false;
    let mut each = |row: Option<OutputRow<'_>>| {
        let (tasks, outputs) = &*columns.borrow();
        if !std::mem::replace(&mut named, true) {
            let tasks = tasks.names().filter(|_| selection.with_tasks);
            let names: Vec<_> = ["index".into()].into_iter().chain(tasks).chain(outputs.names()).collect();
            let _ = out.write_line(format_args!("{}\r", names.join(",")));
        }
        let Some(row) = row else { return ControlFlow::Continue(()) };
        let mut cells = vec![row.index.to_string()];
        if selection.with_tasks {
            cells.extend(tasks.cells(row.task));
        }
        cells.extend(outputs.cells(Some(row.output)));
        out.write_line(format_args!("{}\r", cells.join(",")))
    };
    let mut write = |row: OutputRow<'_>| each(Some(row));
    ledger.output_rows(selection.job, selection.ordered, &mut [&mut learn, &mut write])?;
    let _ = each(None); // the header line, if there was no row
    Ok(())
}
