//! The settings: every flag that has an environment variable.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue},
};

use crate::{cli::one_line, exit::Failure};

/// The maximum size of a file that is read, in bytes; a configuration has a few hundred.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// The suffix of a variable that names a file with a secret.
pub(super) const FILE_SUFFIX: &str = "_FILE";
/// The flag that names the configuration file; it cannot be in that file.
const CONFIG_FILE_KEY: &str = "config";

/// Returns the key of a flag in the file, if the flag is a setting.
pub(super) fn key(arg: &Arg) -> Option<&str> {
    arg.get_env()?;
    arg.get_long().filter(|key| *key != CONFIG_FILE_KEY)
}

/// Returns the name of a setting's environment variable.
pub(super) fn env(arg: &Arg) -> String {
    arg.get_env().unwrap_or_default().to_string_lossy().into_owned()
}

/// True if the value must not be shown; `--help` hides the value of its variable, too.
pub(super) fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

/// A flag that can be set in the environment and in the file.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: String,
    /// The roles that have the setting; empty means all roles.
    pub(super) roles: Vec<String>,
    arg: Arg,
}

/// A value from a source of lower precedence than the environment, with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigValue {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) origin: String,
}

/// The settings of all roles.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) all: Vec<Setting>,
    /// The subcommands of the whole program that have settings.
    pub(super) roles: Vec<String>,
}

impl Settings {
    /// Collects the settings of a program with every role.
    pub(super) fn from_command(whole: &Command) -> Self {
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
                Some(setting) if setting.applies_to(role) => {} // in several of its subcommands
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

    /// Returns the secrets from the files that the environment names.
    ///
    /// # Errors
    /// If a file cannot be read or is empty, or the secret is in the environment as well.
    pub(super) fn read_secrets(&self) -> Result<Vec<ConfigValue>, Failure> {
        let secrets = self.all.iter().filter(|setting| is_secret(&setting.arg));
        secrets.filter_map(|setting| setting.secret().transpose()).collect()
    }

    /// Returns the environment variable of a value that clap refused, if the value came from one.
    pub(super) fn source_variable(&self, error: &clap::Error) -> Option<String> {
        let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
        let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
        let long = flag.split([' ', '=']).next()?.strip_prefix("--")?;
        let env = env(&self.find(long)?.arg);
        (std::env::var(&env).as_ref() == Ok(value)).then_some(env)
    }
}

impl Setting {
    /// True if a role has the setting.
    pub(super) fn applies_to(&self, role: &str) -> bool {
        self.roles.is_empty() || self.roles.iter().any(|known| known == role)
    }

    /// Returns the name of the setting's environment variable.
    pub(super) fn variable(&self) -> String {
        env(&self.arg)
    }

    /// True if the value must not be shown.
    pub(super) fn is_secret(&self) -> bool {
        is_secret(&self.arg)
    }

    /// True if the flag takes no value.
    pub(super) fn is_switch(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
    }

    /// Refuses a value that the flag would refuse, with clap's message.
    pub(super) fn check(&self, value: &str) -> Result<(), String> {
        if self.is_switch() || is_secret(&self.arg) {
            return Ok(()); // the error would show the value
        }
        let alone = Command::new("check").no_binary_name(true).arg(self.arg.clone());
        let parsed = alone.try_get_matches_from([format!("--{}={value}", self.key)]);
        parsed.map(drop).map_err(|error| one_line(&error))
    }

    fn secret(&self) -> Result<Option<ConfigValue>, Failure> {
        let env = env(&self.arg);
        let variable = env.clone() + FILE_SUFFIX;
        let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(path) = given(&variable) else { return Ok(None) };
        if given(&env).is_some() {
            return Err(Failure::usage(format_args!("{env} and {variable} are both set (hint: unset one)")));
        }
        let path = Path::new(&path);
        let text = read_text(path).map_err(|why| {
            Failure::usage(format_args!("{variable}: cannot read {}: {why}", path.display()))
        })?;
        let value = text.trim_end_matches(['\r', '\n']);
        if value.is_empty() {
            return Err(Failure::usage(format_args!("{variable}: {} is empty", path.display())));
        }
        Ok(Some(ConfigValue { key: self.key.clone(), value: value.into(), origin: variable }))
    }
}

/// Reads a text of at most [`FILE_MAX_BYTES`] bytes.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {FILE_MAX_BYTES} bytes")));
    }
    Ok(text)
}
