//! Results of many lines.

use std::{
    fmt::Display,
    io::{self, BufWriter, StdoutLock, Write as _},
    ops::ControlFlow,
};

use serde::Serialize;

use super::written;
use crate::exit::Failure;

/// Lines on stdout, many of them; ends quietly if nobody reads them any more.
pub(crate) struct Lines {
    out: BufWriter<StdoutLock<'static>>,
    result: io::Result<()>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self { out: BufWriter::new(io::stdout().lock()), result: Ok(()) }
    }

    /// Writes one; answers whether anybody wants more.
    pub(crate) fn line(&mut self, line: impl Display) -> ControlFlow<()> {
        self.result = writeln!(self.out, "{line}");
        self.goes_on()
    }

    /// Writes one, as JSON.
    pub(crate) fn json(&mut self, row: &impl Serialize) -> ControlFlow<()> {
        self.result = serde_json::to_writer(&mut self.out, row).map_err(io::Error::from);
        if self.result.is_ok() {
            self.result = writeln!(self.out);
        }
        self.goes_on()
    }

    fn goes_on(&self) -> ControlFlow<()> {
        if self.result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// If something could not be written, but not because nobody reads it.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        written(self.result.and_then(|()| self.out.flush()))
    }
}
