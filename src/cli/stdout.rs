//! Results of many lines, written to stdout.

use std::{
    fmt::Display,
    io::{self, BufWriter, StdoutLock, Write as _},
    ops::ControlFlow,
};

use serde::Serialize;

use super::check_written;
use crate::exit::Failure;

/// A buffered writer of lines to stdout. A closed pipe ends the output without an error.
pub(crate) struct StdoutLines {
    out: BufWriter<StdoutLock<'static>>,
    result: io::Result<()>,
}

impl StdoutLines {
    pub(crate) fn new() -> Self {
        Self { out: BufWriter::new(io::stdout().lock()), result: Ok(()) }
    }

    /// Writes a line. Returns `Break` if stdout is closed or failed.
    pub(crate) fn write_line(&mut self, line: impl Display) -> ControlFlow<()> {
        self.result = writeln!(self.out, "{line}");
        self.flow()
    }

    /// Writes a row as a line of JSON. Returns `Break` if stdout is closed or failed.
    pub(crate) fn write_json(&mut self, row: &impl Serialize) -> ControlFlow<()> {
        self.result = serde_json::to_writer(&mut self.out, row).map_err(io::Error::from);
        if self.result.is_ok() {
            self.result = writeln!(self.out);
        }
        self.flow()
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Flushes the buffer.
    ///
    /// # Errors
    /// If a line could not be written, except because the pipe was closed.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        check_written(self.result.and_then(|()| self.out.flush()))
    }
}
