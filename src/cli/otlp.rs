//! `--otlp`: where spans go, in a program that was built with the feature `otlp`.

use std::env;

use clap::{Arg, ArgMatches, Command};

use super::{flags::host, warn};
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
    let name = role.name().map_or_else(|| "gristmill".into(), |role| format!("gristmill-{role}"));
    let begin = |url: &str| Export::begin(url, Service { name, version, host: &host() });
    if let Some(url) = said {
        return begin(url).map(Some).map_err(|why| Failure::usage(format_args!("--otlp {url:?}: {why}")));
    }
    let Some(url) = standard() else { return Ok(None) };
    // It was not said to us, but to all programs here.
    let export =
        begin(&url).inspect_err(|why| warn(format_args!("no spans are sent: {STANDARD} {url:?}: {why}")));
    Ok(export.ok())
}

/// Where all programs here send their spans, unless they are told not to.
fn standard() -> Option<String> {
    let told = |variable| env::var(variable).ok().filter(|value| !value.is_empty());
    let disabled = told("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    told(STANDARD).filter(|_| !disabled)
}
