//! What can be configured: every flag that has an environment variable.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue},
};

use crate::{cli::brief, exit::Failure};

/// The largest file that is read, in bytes; a configuration has a few hundred.
const FILE_MAX: u64 = 1 << 20;
/// What the name of a variable that names a file ends with.
pub(super) const FILE_SUFFIX: &str = "_FILE";
/// The setting that names the file cannot be in it.
const NOT_IN_THE_FILE: &str = "config";

/// The key of a flag in the file, if it is a setting.
pub(super) fn key(arg: &Arg) -> Option<&str> {
    arg.get_env()?;
    arg.get_long().filter(|key| *key != NOT_IN_THE_FILE)
}

/// The name of a setting's environment variable.
pub(super) fn env(arg: &Arg) -> String {
    arg.get_env().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether nobody should see it: its variable's value is not shown by `--help` either.
pub(super) fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

/// A flag that can be said elsewhere.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: String,
    /// Which roles have it; all if there is none.
    pub(super) roles: Vec<String>,
    arg: Arg,
}

/// A value that was said beneath the environment, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) origin: String,
}

/// All settings of all roles.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) all: Vec<Setting>,
    /// The subcommands of the whole program that have settings of their own.
    pub(super) roles: Vec<String>,
}

impl Settings {
    /// Those of a program with every role.
    pub(super) fn of(whole: &Command) -> Self {
        let mut settings = Self { all: Vec::new(), roles: Vec::new() };
        for role in whole.get_subcommands() {
            settings.collect(role, role.get_name());
        }
        for arg in whole.get_arguments() {
            if let Some(key) = key(arg) {
                settings.all.push(Setting { key: key.into(), roles: Vec::new(), arg: arg.clone() });
            }
        }
        settings
    }

    fn collect(&mut self, command: &Command, role: &str) {
        for arg in command.get_arguments() {
            let Some(key) = key(arg) else { continue };
            if !self.roles.iter().any(|known| known == role) {
                self.roles.push(role.into());
            }
            match self.all.iter_mut().find(|setting| setting.key == key) {
                Some(setting) if setting.is_of(role) => {} // in several of its subcommands
                Some(setting) => setting.roles.push(role.into()),
                None => {
                    self.all.push(Setting { key: key.into(), roles: vec![role.into()], arg: arg.clone() })
                }
            }
        }
        for subcommand in command.get_subcommands() {
            self.collect(subcommand, role);
        }
    }

    pub(super) fn find(&self, key: &str) -> Option<&Setting> {
        self.all.iter().find(|setting| setting.key == key)
    }

    /// The secrets in files that the environment names.
    ///
    /// # Errors
    /// A file cannot be read or is empty, or the secret is in the environment as well.
    pub(super) fn read_secrets(&self) -> Result<Vec<Said>, Failure> {
        let secrets = self.all.iter().filter(|setting| is_secret(&setting.arg));
        secrets.filter_map(|setting| setting.secret().transpose()).collect()
    }

    /// The environment variable from which a value came that clap does not take, if it came from one.
    pub(super) fn variable_of(&self, error: &clap::Error) -> Option<String> {
        let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
        let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
        let long = flag.split([' ', '=']).next()?.strip_prefix("--")?;
        let env = env(&self.find(long)?.arg);
        (std::env::var(&env).as_ref() == Ok(value)).then_some(env)
    }
}

impl Setting {
    /// Whether a role has it.
    pub(super) fn is_of(&self, role: &str) -> bool {
        self.roles.is_empty() || self.roles.iter().any(|known| known == role)
    }

    /// The name of its environment variable.
    pub(super) fn variable(&self) -> String {
        env(&self.arg)
    }

    /// Whether nobody should see it.
    pub(super) fn is_secret(&self) -> bool {
        is_secret(&self.arg)
    }

    /// Whether it is either on or off.
    pub(super) fn is_switch(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
    }

    /// Refuses what the flag would refuse, in its words.
    pub(super) fn check(&self, value: &str) -> Result<(), String> {
        if self.is_switch() || is_secret(&self.arg) {
            return Ok(()); // whose errors would show it
        }
        let alone = Command::new("check").no_binary_name(true).arg(self.arg.clone());
        let said = alone.try_get_matches_from([format!("--{}={value}", self.key)]);
        said.map(drop).map_err(|error| brief(&error))
    }

    fn secret(&self) -> Result<Option<Said>, Failure> {
        let env = env(&self.arg);
        let variable = env.clone() + FILE_SUFFIX;
        let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(path) = given(&variable) else { return Ok(None) };
        if given(&env).is_some() {
            return Err(Failure::usage(format_args!("{env} and {variable} are both set (hint: unset one)")));
        }
        let path = Path::new(&path);
        let text = read(path).map_err(|why| {
            Failure::usage(format_args!("{variable}: cannot read {}: {why}", path.display()))
        })?;
        let value = text.trim_end_matches(['\r', '\n']);
        if value.is_empty() {
            return Err(Failure::usage(format_args!("{variable}: {} is empty", path.display())));
        }
        Ok(Some(Said { key: self.key.clone(), value: value.into(), origin: variable }))
    }
}

/// Reads a text, of at most [`FILE_MAX`] bytes.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_MAX} bytes")));
    }
    Ok(text)
}
