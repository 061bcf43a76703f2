//! `--otlp`: the export of spans, in a program that was built with the feature `otlp`.

use std::env;

use clap::{Arg, ArgMatches, Command};
use gristmill_observe::Service;
pub(crate) use gristmill_observe::SpanExport;

use super::{flags::host_name, warn};
use crate::{Role, exit::Failure};

const FLAG_ID: &str = "otlp";
/// The variable that names the collector if the flag is not given.
const STANDARD_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Adds the flag to a command that takes a role, and to its subcommands.
pub(crate) fn add_global_flag(command: Command) -> Command {
    command.arg(flag().global(true))
}

/// Adds the flag to a command that takes a role itself, but not to its subcommands.
pub(crate) fn add_local_flag(command: Command) -> Command {
    command.arg(flag())
}

fn flag() -> Arg {
    Arg::new(FLAG_ID)
        .long(FLAG_ID)
        .env("GRISTMILL_OTLP")
        .value_name("URL")
        .help(
            "Send spans of batches and their results to this OpenTelemetry collector, as http://127.0.0.1:4318, by OTLP over \
             HTTP [default: OTEL_EXPORTER_OTLP_ENDPOINT, else none]",
        )
}

/// Starts the export, if the command takes a role and a collector is configured.
///
/// # Errors
/// If `--otlp` has an unusable URL. An unusable [`STANDARD_VARIABLE`] is only a warning.
pub(crate) fn begin(
    matches: &ArgMatches,
    role: Role,
    version: &'static str,
) -> Result<Option<SpanExport>, Failure> {
    let mut here = matches;
    while let Some((_, next)) = here.subcommand() {
        here = next;
    }
    let Ok(given) = here.try_get_one::<String>(FLAG_ID) else { return Ok(None) }; // no such flag
    let name = role.name().map_or_else(|| "gristmill".into(), |role| format!("gristmill-{role}"));
    let begin = |url: &str| SpanExport::begin(url, Service { name, version, host: &host_name() });
    if let Some(url) = given {
        return begin(url).map(Some).map_err(|why| Failure::usage(format_args!("--otlp {url:?}: {why}")));
    }
    let Some(url) = standard_endpoint() else { return Ok(None) };
    // The variable is meant for all programs on this machine, not for Gristmill alone.
    let export = begin(&url)
        .inspect_err(|why| warn(format_args!("no spans are sent: {STANDARD_VARIABLE} {url:?}: {why}")));
    Ok(export.ok())
}

/// Returns the collector's URL from the environment, unless OpenTelemetry is disabled there.
fn standard_endpoint() -> Option<String> {
    let variable_value = |variable| env::var(variable).ok().filter(|value| !value.is_empty());
    let disabled =
        variable_value("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    variable_value(STANDARD_VARIABLE).filter(|_| !disabled)
}
