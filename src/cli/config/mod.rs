//! Configuration: flags, then environment variables, then a file, then defaults.
//!
//! The flags are the only list of what can be configured: a flag with an environment variable is a *setting*, and its
//! name is its key in the file. What the file says becomes the flag's default before the command line is read, so that
//! clap does the rest.

mod environment;
mod file;
mod settings;
mod show;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgMatches, Args, Command, Subcommand as _, builder::Resettable, error::ErrorKind,
    parser::ValueSource,
};

use self::settings::{Said, Settings};
pub(crate) use self::show::show;
use super::ledger_commands::Reading;
use crate::{connect, exit::Failure};

/// Where else settings come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigFlags {
    /// Read settings from this file, as `slots = 8`: keys are the names of flags that have an environment variable, tables
    /// such as `[worker]` are for one role; flags and environment come first [default: none is read]
    #[arg(long, global = true, env = "GRISTMILL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the settings of this command, and where each comes from, and do nothing
    #[arg(long, global = true)]
    pub(crate) print_config: bool,
}

/// Why there are no matches.
pub(crate) enum Stop {
    /// The command line: wrong, or help was asked for.
    CommandLine(clap::Error),
    /// What is beneath it.
    Beneath(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Beneath(failure)
    }
}

/// What was said on the command line and beneath it.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) matches: ArgMatches,
    command: Command,
    /// What was said beneath the environment.
    beneath: Vec<Said>,
    /// What somebody may have meant otherwise.
    pub(crate) warnings: Vec<String>,
}

/// Reads the command line, and beneath it the environment, files with secrets and the configuration file.
///
/// `whole` is the command line of the program with every role: a file is for all of them. `role` names this one, if it
/// is not the subcommand that says so.
pub(crate) fn read(command: Command, whole: Command, role: Option<&str>) -> Result<Configured, Stop> {
    let settings = Settings::of(&whole);
    let words: Vec<OsString> = std::env::args_os().collect();
    // Somebody who asks what is configured need not say what to do.
    let command = if words.iter().any(|word| word == "--print-config") { relaxed(command) } else { command };
    let parse =
        |command: &Command| changed(command.clone(), &without_empty_variables).try_get_matches_from(&words);
    let first = parse(&command).map_err(|error| located(error, &settings))?;

    let mut beneath = match first.get_one::<PathBuf>("config") {
        Some(path) => settings.read_file(path, role.or(first.subcommand_name()))?,
        None => Vec::new(),
    };
    for said in settings.read_secrets()? {
        beneath.retain(|other| other.key != said.key);
        beneath.push(said);
    }
    let with_defaults = |arg: Arg| match beneath.iter().find(|said| settings::key(&arg) == Some(&said.key)) {
        Some(said) => arg.default_value(said.value.clone()),
        None => arg,
    };
    let command = changed(command, &with_defaults);
    let matches = parse(&command).map_err(Stop::CommandLine)?;
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let warnings = environment::unknown(&settings, names);
    let configured = Configured { matches, command, beneath, warnings };
    configured.refuse_seen_passwords()?;
    configured.refuse_broken_urls()?;
    Ok(configured)
}

impl Configured {
    /// The settings of the command that was given, and where they were looked for.
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

    fn refuse_seen_passwords(&self) -> Result<(), Failure> {
        for (arg, matches) in self.settings() {
            if arg.is_hide_set()
                && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
            {
                let (env, key) = (settings::env(arg), arg.get_id());
                return Err(Failure::usage(format_args!(
                    "a {key} on the command line is seen by everybody on this machine (hint: {env}, {env}_FILE, or \
                     `{key}` in the configuration file)"
                )));
            }
        }
        Ok(())
    }

    /// Here, where it is known who said it, rather than when the broker is asked for. Whoever only reads a ledger asks none.
    fn refuse_broken_urls(&self) -> Result<(), Failure> {
        let mut deepest = self.matches.subcommand();
        while let Some(below) = deepest.and_then(|(_, matches)| matches.subcommand()) {
            deepest = Some(below);
        }
        if deepest.is_some_and(|(name, _)| Reading::has_subcommand(name)) {
            return Ok(());
        }
        let Some((arg, matches)) = self.settings().into_iter().find(|(arg, _)| arg.get_id() == "broker")
        else {
            return Ok(());
        };
        let url = matches.get_raw("broker").and_then(|mut values| values.next());
        let Some(url) = url.map(|url| url.to_string_lossy()) else { return Ok(()) };
        connect::check_url(&url)
            .map_err(|error| Failure::usage(format_args!("{}: {error}", self.origin(arg, matches))))
    }

    /// Where the value of a setting was said.
    fn origin(&self, arg: &Arg, matches: &ArgMatches) -> String {
        let key = settings::key(arg).unwrap_or_default();
        match matches.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => format!("--{key}"),
            Some(ValueSource::EnvVariable) => settings::env(arg),
            _ => {
                let beneath = self.beneath.iter().find(|said| said.key == key);
                beneath.map_or_else(|| "default".into(), |said| said.origin.clone())
            }
        }
    }
}

/// Of these names the one that is nearest to what somebody wrote, if it is near.
fn nearest<'a>(known: impl Iterator<Item = &'a str>, written: &str) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(known, written), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3)
        .min()
        .map(|(_, known)| known)
}

/// Changes all flags of a command and its subcommands.
fn changed(command: Command, change: &dyn Fn(Arg) -> Arg) -> Command {
    command.mut_args(change).mut_subcommands(|subcommand| changed(subcommand, change))
}

/// Nothing is required of somebody who only asks.
fn relaxed(command: Command) -> Command {
    command
        .subcommand_required(false)
        .arg_required_else_help(false)
        .mut_args(|arg| arg.required(false))
        .mut_subcommands(relaxed)
}

/// An empty variable is as good as none: a compose file cannot leave one out.
fn without_empty_variables(arg: Arg) -> Arg {
    let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { arg.env(Resettable::Reset) } else { arg }
}

/// Says where a value came from that was not on the command line.
fn located(error: clap::Error, settings: &Settings) -> Stop {
    if !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
        return Stop::CommandLine(error);
    }
    match settings.variable_of(&error) {
        Some(variable) => Failure::usage(format_args!("{variable}: {}", super::brief(&error))).into(),
        None => Stop::CommandLine(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{App, Role, cli::kinds::Kinds};

    fn whole() -> Command {
        let (kinds, _) = App::with_built_in_jobs().into_parts().unwrap();
        crate::cli::command(Role::All, &Kinds(kinds), "1")
    }

    fn all_args(command: &Command) -> Vec<&Arg> {
        command.get_arguments().chain(command.get_subcommands().flat_map(all_args)).collect()
    }

    #[test]
    fn a_setting_has_one_name_and_means_the_same_in_every_role() {
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
    fn no_setting_is_required_so_that_a_file_may_be_the_one_to_say_it() {
        let whole = whole();
        let settings = all_args(&whole).into_iter().filter(|arg| settings::key(arg).is_some());
        assert_eq!(settings.filter(|arg| arg.is_required_set()).count(), 0);
    }
}
