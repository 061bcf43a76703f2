//! The program: the kinds of job that it knows, and the roles that it can take.

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

/// The roles of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Every role as a subcommand, and `run`, which is all of them in one process.
    All,
    /// Splits jobs.
    Producer,
    /// Runs tasks.
    Worker,
    /// Folds results.
    Sink,
}

impl Role {
    /// Returns the subcommand of a single role, None for [`Role::All`].
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Producer => Some("producer"),
            Self::Worker => Some("worker"),
            Self::Sink => Some("sink"),
        }
    }
}

/// The command line of a kind of job.
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
    /// Returns a program that knows no kind yet.
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

    /// Names the build of the program, 1 to 63 of `a-z`, `0-9` and `-`. Needed for several
    /// executables that are built together, such as one for each role. Defaults to a hash of the
    /// executable.
    #[must_use]
    pub fn build(self, build: &'static str) -> Self {
        Self { build: Some(build), ..self }
    }

    /// Sets the program's own version, for `--version` and for cursors: a job is resumed by the
    /// version that submitted it. Defaults to Gristmill's version.
    #[must_use]
    pub fn version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    /// Returns a program that knows the built-in kinds: `crack`, `primes` and `spin`.
    #[must_use]
    pub fn with_built_in_jobs() -> Self {
        Self::new().job::<Crack>().job::<Primes>().job::<Spin>()
    }

    /// Adds a kind. The job's fields are its flags.
    ///
    /// [`App::main`] fails if a kind is added twice, or if one of its flags has the id, the long or
    /// short name, or an alias of a flag that Gristmill has itself on `run` or `producer submit`.
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

    /// Parses the command line and runs it, with every role. Call it at the end of `main`.
    #[must_use]
    pub fn main(self) -> ExitCode {
        self.main_as(Role::All)
    }

    /// Parses the command line of a program that has one role, and runs it.
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
