//! Kinds of job as subcommands of `submit` and `run`.

use std::sync::Arc;

use clap::{
    ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};
use gristmill_jobs::{Crack, Primes, Spin};
use gristmill_shared::{AnyJob, Job as _};

use super::nearest_name;
use crate::exit::Failure;

/// The placeholder of a kind in usage lines.
pub(super) const VALUE_NAME: &str = "KIND";

/// The command line of a kind of job.
#[derive(Debug, Clone)]
pub(crate) struct KindArgs {
    pub(crate) command: Command,
    pub(crate) parse: fn(&ArgMatches) -> Result<Arc<dyn AnyJob>, clap::Error>,
}

/// The kinds that a program knows.
#[derive(Debug)]
pub(crate) struct Kinds(pub(crate) Vec<KindArgs>);

impl Kinds {
    /// Adds a subcommand for each kind to `command`.
    pub(crate) fn add_to(&self, command: Command) -> Command {
        command
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand_value_name(VALUE_NAME)
            .subcommand_help_heading("Kinds")
            .disable_help_subcommand(true)
            .subcommands(self.commands().cloned())
    }

    /// Returns the subcommand of each kind.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.0.iter().map(|kind| &kind.command)
    }

    /// True if these are exactly the built-in kinds, as in Gristmill's own programs.
    pub(crate) fn is_built_in(&self) -> bool {
        self.commands().map(Command::get_name).eq([Crack::KIND, Primes::KIND, Spin::KIND])
    }

    /// True if the program knows this kind.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.commands().any(|kind| kind.get_name() == name)
    }

    /// Parses the job that the subcommand and its flags describe.
    pub(crate) fn parse_job(&self, matches: &ArgMatches) -> Result<Arc<dyn AnyJob>, Failure> {
        let (name, matches) =
            matches.subcommand().ok_or_else(|| Failure::usage("no kind of job was named"))?;
        let kind = self.0.iter().find(|kind| kind.command.get_name() == name);
        let kind =
            kind.ok_or_else(|| Failure::usage(format_args!("no job of kind {name:?} is known here")))?;
        (kind.parse)(matches).map_err(|error| Failure::usage(super::one_line(&error)))
    }

    /// Returns the failure for an unknown kind, with the known ones; None for any other error.
    pub(crate) fn unknown_kind(&self, error: &clap::Error) -> Option<Failure> {
        if error.kind() != ErrorKind::InvalidSubcommand {
            return None;
        }
        let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return None };
        if !usage.to_string().contains(&format!("<{VALUE_NAME}>")) {
            return None;
        }
        let Some(ContextValue::String(got)) = error.get(ContextKind::InvalidSubcommand) else { return None };
        let names: Vec<_> = self.commands().map(Command::get_name).collect();
        let near = nearest_name(names.iter().copied(), got);
        let hint = near.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
        Some(Failure::usage(format_args!(
            "no job of kind {got:?} is known here (known: {}{hint})",
            names.join(", ")
        )))
    }
}
