//! Logs go to stderr, above the bar if there is one.

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::bar::Bar;
use crate::Role;

// What lapin has to say of a connection we say ourselves, once.
/// What an operator should know of a worker or a sink, unless they say otherwise.
const SERVER_FILTER: &str =
    "warn,lapin=off,gristmill=info,gristmill_worker=info,gristmill_sink=info,gristmill_amqp=info";
/// What somebody who submits or runs a job should know besides the bar, unless they say otherwise.
const CLIENT_FILTER: &str = "warn,lapin=off";

/// Starts to log. A filter that cannot be read is told, and the default used.
pub(crate) fn init(filter: Option<String>, role: Role, bar: &Bar) {
    let default = match role {
        Role::Worker | Role::Sink => SERVER_FILTER,
        Role::Producer | Role::All => CLIENT_FILTER,
    };
    let filter = match filter.map(EnvFilter::try_new) {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            super::say(format_args!("warning: the log filter cannot be read: {error}; using {default}"));
            EnvFilter::new(default)
        }
        None => EnvFilter::new(default),
    };
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(AboveTheBar(bar.clone()))
        .init();
}

#[derive(Clone)]
struct AboveTheBar(Bar);

impl<'a> MakeWriter<'a> for AboveTheBar {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for AboveTheBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
