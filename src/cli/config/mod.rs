//! Configuration: flags, then environment variables, then a file, then defaults.
//!
//! The flags are the only list of settings: a flag with an environment variable is a *setting*, and
//! its name is its key in the file. Values of the file become the defaults of flags before the
//! command line is parsed; clap does the rest.

mod environment;
mod file;
mod settings;
mod show;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgMatches, Args, Command, Subcommand as _, builder::Resettable, error::ErrorKind,
    parser::ValueSource,
};
use gristmill_shared::TransportRegistry;

use self::settings::{ConfigValue, Settings};
pub(crate) use self::show::config_text;
use super::{flags::BROKER_FLAG_ID, ledger_commands::LedgerSubcommand};
use crate::exit::Failure;

/// The flags about the configuration itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigFlags {
    /// Read settings from this file, as `slots = 8`: keys are the names of flags that have an
    /// environment variable, tables such as `[worker]` are for one role; flags and environment take
    /// precedence [default: no file]
    #[arg(long, global = true, env = "GRISTMILL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the settings of this command, and the source of each, and exit
    #[arg(long, global = true)]
    pub(crate) print_config: bool,
}

/// The reasons why the command line gives no configuration.
pub(crate) enum ConfigError {
    /// An error on the command line, or a request for help.
    CommandLine(clap::Error),
    /// An error in a source of lower precedence.
    LowerSource(Failure),
}

impl From<Failure> for ConfigError {
    fn from(failure: Failure) -> Self {
        Self::LowerSource(failure)
    }
}

/// The resolved settings: from the command line and from the sources of lower precedence.
#[derive(Debug)]
pub(crate) struct ResolvedConfig {
    pub(crate) matches: ArgMatches,
    command: Command,
    /// Values from sources of lower precedence than the environment.
    lower_precedence: Vec<ConfigValue>,
    /// Warnings about likely mistakes.
    pub(crate) warnings: Vec<String>,
}

/// Reads the command line, and with lower precedence the environment, files with secrets and the
/// configuration file.
///
/// `whole` is the command line of the program with every role: the file may have settings for all
/// of them. `role` is the role of this program, or None if the subcommand gives it. `transports`
/// check the broker's URL.
pub(crate) fn read(
    command: Command,
    whole: Command,
    role: Option<&str>,
    transports: &TransportRegistry,
) -> Result<ResolvedConfig, ConfigError> {
    let settings = Settings::from_command(&whole);
    let words: Vec<OsString> = std::env::args_os().collect();
    // --print-config needs no subcommand and no required flags.
    let command =
        if words.iter().any(|word| word == "--print-config") { without_required(command) } else { command };
    let parse =
        |command: &Command| map_flags(command.clone(), &without_empty_variables).try_get_matches_from(&words);
    let first = parse(&command).map_err(|error| locate_error(error, &settings))?;

    let mut lower_precedence = match first.get_one::<PathBuf>("config") {
        Some(path) => settings.read_file(path, role.or(first.subcommand_name()))?,
        None => Vec::new(),
    };
    for secret in settings.read_secrets()? {
        lower_precedence.retain(|other| other.key != secret.key);
        lower_precedence.push(secret);
    }
    let with_defaults =
        |arg: Arg| match lower_precedence.iter().find(|value| settings::key(&arg) == Some(&value.key)) {
            Some(value) => arg.default_value(value.value.clone()),
            None => arg,
        };
    let command = map_flags(command, &with_defaults);
    let matches = parse(&command).map_err(ConfigError::CommandLine)?;
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let warnings = environment::unknown_variables(&settings, names);
    let configured = ResolvedConfig { matches, command, lower_precedence, warnings };
    configured.refuse_exposed_passwords()?;
    configured.refuse_broken_urls(transports)?;
    Ok(configured)
}

impl ResolvedConfig {
    /// Returns the settings of the given command, with the matches that hold their values.
    fn settings(&self) -> Vec<(&Arg, &ArgMatches)> {
        let mut found = Vec::new();
        let mut here = Some((&self.command, &self.matches));
        while let Some((command, matches)) = here {
            let settings = command.get_arguments().filter(|arg| settings::key(arg).is_some());
            found.extend(settings.map(|arg| (arg, matches)));
            here = matches
                .subcommand()
                .and_then(|(name, matches)| command.find_subcommand(name).map(|command| (command, matches)));
        }
        found
    }

    fn refuse_exposed_passwords(&self) -> Result<(), Failure> {
        for (arg, matches) in self.settings() {
            if arg.is_hide_set()
                && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
            {
                let (env, key) = (settings::env(arg), arg.get_id());
                return Err(Failure::usage(format_args!(
                    "a {key} on the command line is visible to every user of this machine (hint: {env}, {env}_FILE, or \
                     `{key}` in the configuration file)"
                )));
            }
        }
        Ok(())
    }

    /// Refuses a broker URL that cannot be used, and names its source, which is unknown when the
    /// program connects later. Commands that only read a ledger do not check it.
    fn refuse_broken_urls(&self, transports: &TransportRegistry) -> Result<(), Failure> {
        let mut deepest = self.matches.subcommand();
        while let Some(below) = deepest.and_then(|(_, matches)| matches.subcommand()) {
            deepest = Some(below);
        }
        if deepest.is_some_and(|(name, _)| LedgerSubcommand::has_subcommand(name)) {
            return Ok(());
        }
        let broker = self.settings().into_iter().find(|(arg, _)| arg.get_id() == BROKER_FLAG_ID);
        let Some((arg, matches)) = broker else { return Ok(()) };
        let url = matches.get_raw(BROKER_FLAG_ID).and_then(|mut values| values.next());
        let Some(url) = url.map(|url| url.to_string_lossy()) else { return Ok(()) };
        transports
            .check_url(&url)
            .map_err(|error| Failure::usage(format_args!("{}: {error}", self.origin(arg, matches))))
    }

    /// Returns the source of a setting's value.
    fn origin(&self, arg: &Arg, matches: &ArgMatches) -> String {
        let key = settings::key(arg).unwrap_or_default();
        match matches.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => format!("--{key}"),
            Some(ValueSource::EnvVariable) => settings::env(arg),
            _ => {
                let value = self.lower_precedence.iter().find(|value| value.key == key);
                value.map_or_else(|| "default".into(), |value| value.origin.clone())
            }
        }
    }
}

/// Changes all flags of a command and its subcommands.
pub(super) fn map_flags(command: Command, change: &dyn Fn(Arg) -> Arg) -> Command {
    command.mut_args(change).mut_subcommands(|subcommand| map_flags(subcommand, change))
}

/// Makes all flags and subcommands optional.
fn without_required(command: Command) -> Command {
    command
        .subcommand_required(false)
        .arg_required_else_help(false)
        .mut_args(|arg| arg.required(false))
        .mut_subcommands(without_required)
}

/// Ignores an empty variable: a compose file cannot leave a variable out.
fn without_empty_variables(arg: Arg) -> Arg {
    let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { arg.env(Resettable::Reset) } else { arg }
}

/// Adds the environment variable to the error of a value that came from it.
fn locate_error(error: clap::Error, settings: &Settings) -> ConfigError {
    if !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
        return ConfigError::CommandLine(error);
    }
    match settings.source_variable(&error) {
        Some(variable) => Failure::usage(format_args!("{variable}: {}", super::one_line(&error))).into(),
        None => ConfigError::CommandLine(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{App, Role, cli::kinds::Kinds};

    fn whole() -> Command {
        let (kinds, _, transports) = App::with_built_in_jobs().0.into_parts().unwrap();
        crate::cli::command(Role::All, &Kinds(kinds), &transports, "1")
    }

    fn all_args(command: &Command) -> Vec<&Arg> {
        command.get_arguments().chain(command.get_subcommands().flat_map(all_args)).collect()
    }

    #[test]
    fn settings_agree_across_roles() {
        let whole = whole();
        let mut by_key = std::collections::BTreeMap::<_, &Arg>::new();
        for arg in all_args(&whole).into_iter().filter(|arg| arg.get_env().is_some()) {
            let long = arg.get_long().expect("a variable is that of a flag");
            assert_eq!(settings::env(arg), format!("GRISTMILL_{}", long.to_uppercase().replace('-', "_")));
            let first = by_key.entry(long).or_insert(arg);
            let alike = |arg: &Arg| {
                (
                    arg.get_default_values().to_vec(),
                    arg.get_value_parser().type_id(),
                    settings::is_secret(arg),
                )
            };
            assert_eq!(alike(first), alike(arg), "--{long} differs from role to role");
        }
        assert!(by_key.len() >= 15, "{:?}", by_key.keys());
    }

    #[test]
    fn no_setting_is_required() {
        let whole = whole();
        let settings = all_args(&whole).into_iter().filter(|arg| settings::key(arg).is_some());
        assert_eq!(settings.filter(|arg| arg.is_required_set()).count(), 0);
    }
}
