//! The stand-in for `otlp.rs` in a program that was built without the feature: it exports nothing.

use clap::{ArgMatches, Command};
use tracing_subscriber::{Layer, Registry};

use crate::{Role, exit::Failure};

/// The export of spans, which does not exist in this build.
#[derive(Debug)]
pub(crate) enum SpanExport {}

impl SpanExport {
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        match *self {}
    }

    pub(crate) fn announce(&self) {
        match *self {}
    }

    pub(crate) fn shut_down(self) {
        match self {}
    }
}

/// Returns the command unchanged: there is no flag.
pub(crate) fn add_global_flag(command: Command) -> Command {
    command
}

/// Returns the command unchanged: there is no flag.
pub(crate) fn add_local_flag(command: Command) -> Command {
    command
}

pub(crate) fn begin(_: &ArgMatches, _: Role, _: &'static str) -> Result<Option<SpanExport>, Failure> {
    Ok(None)
}
