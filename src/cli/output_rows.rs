//! `sink outputs`: the outputs of a job as lines of text, of JSON, or of CSV.

use std::{cell::RefCell, ops::ControlFlow};

use gristmill_shared::JobId;
use gristmill_sink::{LedgerReader, OutputRow, SinkError};

use super::{Outcome, csv::Columns, stdout::Lines};
use crate::{Exit, exit::Failure};

/// The form of a printed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Index, tab, task and tab if it is asked for, output.
    Text,
    /// An object a line.
    Json,
    /// A table, with the names of its columns in the first line.
    Csv,
}

/// The rows and columns to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    pub(crate) job: JobId,
    /// In the order of the split, not of arrival.
    pub(crate) ordered: bool,
    /// The tasks as well.
    pub(crate) with_tasks: bool,
}

pub(crate) fn print(ledger: &LedgerReader, selection: Selection, form: Form) -> Outcome {
    let Selection { job, with_tasks, .. } = selection;
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
    let mut out = Lines::new();
    match form {
        Form::Text => text(ledger, selection, &mut out)?,
        Form::Json => {
            let mut each =
                |row: OutputRow<'_>| out.json(&OutputRow { task: row.task.filter(|_| with_tasks), ..row });
            ledger.output_rows(job, selection.ordered, &mut [&mut each])?;
        }
        Form::Csv => csv(ledger, selection, &mut out)?,
    }
    out.end()?;
    Ok(Exit::Ok)
}

fn text(ledger: &LedgerReader, selection: Selection, out: &mut Lines) -> Result<(), SinkError> {
    let mut each = |OutputRow { index, task, output }: OutputRow<'_>| {
        if selection.with_tasks {
            let task = task.map_or("null", |task| task.get());
            out.line(format_args!("{index}\t{task}\t{output}"))
        } else {
            out.line(format_args!("{index}\t{output}"))
        }
    };
    ledger.output_rows(selection.job, selection.ordered, &mut [&mut each])
}

/// Reads all rows twice: the columns must be known before the first line.
fn csv(ledger: &LedgerReader, selection: Selection, out: &mut Lines) -> Result<(), SinkError> {
    let columns = RefCell::new((Columns::new("task"), Columns::new("output")));
    let mut learn = |row: OutputRow<'_>| {
        let (tasks, outputs) = &mut *columns.borrow_mut();
        row.task.into_iter().for_each(|task| tasks.learn(task));
        outputs.learn(row.output);
        ControlFlow::Continue(())
    };
    let mut named = false;
    let mut each = |row: Option<OutputRow<'_>>| {
        let (tasks, outputs) = &*columns.borrow();
        if !std::mem::replace(&mut named, true) {
            let tasks = tasks.names().filter(|_| selection.with_tasks);
            let names: Vec<_> = ["index".into()].into_iter().chain(tasks).chain(outputs.names()).collect();
            let _ = out.line(format_args!("{}\r", names.join(",")));
        }
        let Some(row) = row else { return ControlFlow::Continue(()) };
        let mut cells = vec![row.index.to_string()];
        if selection.with_tasks {
            cells.extend(tasks.cells(row.task));
        }
        cells.extend(outputs.cells(Some(row.output)));
        out.line(format_args!("{}\r", cells.join(",")))
    };
    let mut write = |row: OutputRow<'_>| each(Some(row));
    ledger.output_rows(selection.job, selection.ordered, &mut [&mut learn, &mut write])?;
    let _ = each(None); // the names, if there was no row
    Ok(())
}
