//! `--otlp`: where spans go, in a program that was built with the feature `otlp`.

use std::env;

use clap::{Arg, ArgMatches, Command};

use super::flags::host;
pub(crate) use crate::otlp::Export;
use crate::otlp::Service;
use crate::{Role, exit::Failure};

const ID: &str = "otlp";
/// What is taken if nothing is said.
const STANDARD: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Gives the flag to a command that takes a role, whatever its subcommands say of how.
pub(crate) fn add_to(command: Command) -> Command {
    command.arg(flag().global(true))
}

/// Gives it to a command that takes a role by itself: its subcommands take none.
pub(crate) fn add_to_itself(command: Command) -> Command {
    command.arg(flag())
}

fn flag() -> Arg {
    Arg::new(ID)
        .long(ID)
        .env("GRISTMILL_OTLP")
        .value_name("URL")
        .help(
            "Send spans of batches and their results to this OpenTelemetry collector, as http://127.0.0.1:4318, by OTLP over \
             HTTP [default: OTEL_EXPORTER_OTLP_ENDPOINT, else none]",
        )
        .help_heading("Common options")
}

/// Begins to export, if the command takes a role and somebody wants its spans.
///
/// # Errors
/// If they cannot go there.
pub(crate) fn begin(
    matches: &ArgMatches,
    role: Role,
    version: &'static str,
) -> Result<Option<Export>, Failure> {
    let mut here = matches;
    while let Some((_, next)) = here.subcommand() {
        here = next;
    }
    let Ok(said) = here.try_get_one::<String>(ID) else { return Ok(None) }; // it has no such flag
    let standard = || env::var(STANDARD).ok().filter(|url| !url.is_empty());
    let (url, by) = match (said, standard()) {
        (Some(url), _) => (url.clone(), "--otlp"),
        (None, Some(url)) => (url, STANDARD),
        (None, None) => return Ok(None),
    };
    let name = role.name().map_or_else(|| "gristmill".into(), |role| format!("gristmill-{role}"));
    let export = Export::begin(&url, Service { name, version, host: &host() });
    export.map(Some).map_err(|why| Failure::usage(format_args!("{by} {url:?}: {why}")))
}
