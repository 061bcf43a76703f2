//! A program that was built without the feature `otlp` exports nothing.

use clap::{ArgMatches, Command};
use tracing_subscriber::{Layer, Registry};

use crate::{Role, exit::Failure};

/// There is none.
#[derive(Debug)]
pub(crate) enum Export {}

impl Export {
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        match *self {}
    }

    pub(crate) fn announce(&self) {
        match *self {}
    }

    pub(crate) fn end(self) {
        match self {}
    }
}

/// There is no flag.
pub(crate) fn add_to(command: Command) -> Command {
    command
}

/// Likewise.
pub(crate) fn add_to_itself(command: Command) -> Command {
    command
}

pub(crate) fn begin(_: &ArgMatches, _: Role, _: &'static str) -> Result<Option<Export>, Failure> {
    Ok(None)
}
