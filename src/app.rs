//! The program: the kinds of job and transport that it knows, and the roles that it can take.

use std::process::ExitCode;

use clap::Command;
use gristmill_jobs::{Crack, Primes, Spin};
use gristmill_shared::{Job, Registry, TransportDriver, erase};

use crate::{
    Role,
    cli::{self, kinds::KindArgs},
    program::Program,
    transports::built_in_transports,
};

/// A program that knows some kinds of job and can take every role.
#[derive(Debug)]
pub struct App(pub(crate) Program);

impl Default for App {
    fn default() -> Self {
        Self::new()
    }
}

impl App {
    /// Returns a program that knows no kind yet, and the built-in transports.
    #[must_use]
    pub fn new() -> Self {
        Self(Program {
            version: env!("CARGO_PKG_VERSION"),
            kinds: Vec::new(),
            registry: Registry::default(),
            transports: built_in_transports(),
            refused: None,
            build: None,
        })
    }

    /// Names the build of the program, 1 to 63 of `a-z`, `0-9` and `-`. Needed for several
    /// executables that are built together, such as one for each role. Defaults to a hash of the
    /// executable.
    #[must_use]
    pub fn build(mut self, build: &'static str) -> Self {
        self.0.build = Some(build);
        self
    }

    /// Sets the program's own version, for `--version` and for cursors: a job is resumed by the
    /// version that submitted it. Defaults to Gristmill's version.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Self {
        self.0.version = version;
        self
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
        match self.0.registry.register::<J>() {
            Ok(()) => self.0.kinds.push(KindArgs {
                command: J::augment_args(Command::new(J::KIND)),
                parse: |matches| J::from_arg_matches(matches).map(erase),
            }),
            Err(error) => self.0.refuse(error),
        }
        self
    }

    /// Adds a kind of transport: `--broker` of every command then takes URLs of its schemes.
    ///
    /// [`App::main`] fails if another transport has one of these schemes.
    ///
    /// ```no_run
    /// # fn example(driver: impl gristmill::TransportDriver) -> std::process::ExitCode {
    /// gristmill::App::with_built_in_jobs().transport(driver).main()
    /// # }
    /// ```
    #[must_use]
    pub fn transport(mut self, driver: impl TransportDriver) -> Self {
        if let Err(error) = self.0.transports.register(driver) {
            self.0.refuse(error);
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
        cli::main(self.0, role).into()
    }
}
