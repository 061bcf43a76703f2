//! A program: the kinds of job it knows, and the roles it can take.

use std::{process::ExitCode, sync::Arc};

use clap::{ArgMatches, Command};
use gristmill_jobs::{Crack, Primes, Spin};
use gristmill_shared::{AnyJob, Job, RegisterError, Registry, erase};

use crate::cli;

/// A program that knows some kinds of job and can take every role.
#[derive(Debug)]
pub struct App {
    pub(crate) version: &'static str,
    kinds: Vec<KindArgs>,
    registry: Registry,
    refused: Option<RegisterError>,
    pub(crate) build: Option<&'static str>,
}

/// What a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Every role is a subcommand, and `run` is all of them at once.
    All,
    /// Splits jobs.
    Producer,
    /// Runs tasks.
    Worker,
    /// Folds results.
    Sink,
}

impl Role {
    /// Its subcommand, if it is one role alone.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Producer => Some("producer"),
            Self::Worker => Some("worker"),
            Self::Sink => Some("sink"),
        }
    }
}

/// A kind of job on the command line.
#[derive(Debug, Clone)]
pub(crate) struct KindArgs {
    pub(crate) command: Command,
    pub(crate) parse: fn(&ArgMatches) -> Result<Arc<dyn AnyJob>, clap::Error>,
}

impl Default for App {
    fn default() -> Self {
        Self::new()
    }
}

impl App {
    /// A program that knows no kind yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kinds: Vec::new(),
            registry: Registry::default(),
            refused: None,
            build: None,
        }
    }

    /// Names the build of the program, 1 to 63 of `a-z`, `0-9` and `-`: for several executables
    /// that are built together, as one for each role. Defaults to a hash of the executable.
    #[must_use]
    pub fn build(self, build: &'static str) -> Self {
        Self { build: Some(build), ..self }
    }

    /// The program's own version, for `--version` and for cursors: a job is resumed by the version that submitted it.
    /// Defaults to Gristmill's.
    #[must_use]
    pub fn version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    /// A program that knows the built-in kinds: `crack`, `primes` and `spin`.
    #[must_use]
    pub fn with_built_in_jobs() -> Self {
        Self::new().job::<Crack>().job::<Primes>().job::<Spin>()
    }

    /// Adds a kind. The job's fields are its flags. Adding a kind twice makes [`App::main`] fail, and so does a flag that
    /// Gristmill has itself on `run` or `producer submit`, by its id, its long or short name, or an alias.
    #[must_use]
    pub fn job<J: Job + clap::Args>(mut self) -> Self {
        match self.registry.register::<J>() {
            Ok(()) => self.kinds.push(KindArgs {
                command: J::augment_args(Command::new(J::KIND)),
                parse: |matches| J::from_arg_matches(matches).map(erase),
            }),
            Err(error) => self.refused = self.refused.or(Some(error)),
        }
        self
    }

    /// Reads the command line and does what it says, in every role. For the end of a `main`.
    #[must_use]
    pub fn main(self) -> ExitCode {
        self.main_as(Role::All)
    }

    /// Reads the command line of a program that has one role.
    #[must_use]
    pub fn main_as(self, role: Role) -> ExitCode {
        cli::main(self, role).into()
    }

    pub(crate) fn into_parts(self) -> Result<(Vec<KindArgs>, Registry), RegisterError> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok((self.kinds, self.registry)),
        }
    }
}
