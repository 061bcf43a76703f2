//! The description of a command: program, arguments, environment, folder, input and bounds.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Stdio},
};

use crate::leash;

/// The bytes of standard output that a command may write by default: far more than a task's output
/// may have, and few enough for every slot to hold.
pub const STDOUT_MAX_BYTES: usize = 8 << 20;

/// The number of last bytes of standard error that are kept: enough for a backtrace.
pub const STDERR_TAIL_BYTES: usize = 64 << 10;

/// The prefix of environment variables that a command does not inherit; the broker's password is
/// among them.
const PRIVATE_PREFIX: &str = "GRISTMILL_";

/// The search path of a program if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A command to run.
///
/// A command inherits the environment of this process except variables that begin with
/// `GRISTMILL_`. Its standard input is empty unless [`Command::stdin`] sets one. No shell is used
/// unless the program is one.
#[derive(Debug, Clone)]
pub struct Command {
    program: OsString,
    name: Option<OsString>,
    args: Vec<OsString>,
    env: BTreeMap<OsString, Option<OsString>>,
    env_clear: bool,
    dir: Option<PathBuf>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) stdout: StdoutBound,
}

/// The bound of a command's standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StdoutBound {
    /// More bytes are an error.
    Max(usize),
    /// The last bytes are kept.
    Tail(usize),
}

impl Command {
    /// Creates a command without arguments. A name without a slash is searched in the command's
    /// `PATH`; a relative path is relative to [`Command::dir`].
    #[must_use]
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            name: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            env_clear: false,
            dir: None,
            stdin: Vec::new(),
            stdout: StdoutBound::Max(STDOUT_MAX_BYTES),
        }
    }

    /// Adds an argument, which is passed unchanged.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets argument 0, the program's own name. Defaults to the program.
    #[must_use]
    pub fn name(self, name: impl Into<OsString>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), Some(value.into()));
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), None);
        self
    }

    /// Inherits no environment variable, and forgets the ones that were set before.
    #[must_use]
    pub fn env_clear(self) -> Self {
        Self { env: BTreeMap::new(), env_clear: true, ..self }
    }

    /// Runs in this folder. Defaults to the folder of this process.
    #[must_use]
    pub fn dir(self, dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), ..self }
    }

    /// Writes these bytes to standard input, followed by the end of file.
    #[must_use]
    pub fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { stdin: bytes.into(), ..self }
    }

    /// Sets the most bytes of standard output; one more ends the command with an error. Defaults to
    /// [`STDOUT_MAX_BYTES`].
    #[must_use]
    pub fn stdout_max(self, bytes: usize) -> Self {
        Self { stdout: StdoutBound::Max(bytes), ..self }
    }

    /// Keeps this number of last bytes of standard output, and counts the bytes before them.
    #[must_use]
    pub fn stdout_tail(self, bytes: usize) -> Self {
        Self { stdout: StdoutBound::Tail(bytes), ..self }
    }

    /// Returns the program as it was given, for messages.
    pub(crate) fn program_text(&self) -> String {
        self.program.display().to_string()
    }

    /// Builds the standard library's command, in a process group of its own, with standard output
    /// and standard error piped. Uses no feature for which the standard library would fork: copying
    /// a large worker costs milliseconds.
    ///
    /// # Errors
    /// If the program is not in `PATH`.
    pub(crate) fn build(&self, stdin: Stdio) -> io::Result<process::Command> {
        let mut command = process::Command::new(self.find()?);
        command.args(&self.args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.arg0(self.name.as_ref().unwrap_or(&self.program)).process_group(0);
        if self.env_clear {
            command.env_clear();
        } else {
            let private = env::vars_os().map(|(name, _)| name).filter(|name| is_private(name));
            for name in private {
                command.env_remove(name);
            }
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let (mark, value) = leash::mark_variable();
        command.env(mark, value);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        Ok(command)
    }

    /// Returns the program's file. A bare name becomes an absolute path.
    fn find(&self) -> io::Result<PathBuf> {
        let program = Path::new(&self.program);
        if self.program.as_encoded_bytes().contains(&b'/') {
            return Ok(program.into());
        }
        let inherited = || if self.env_clear { None } else { env::var_os("PATH") };
        let path = self.env.get(OsStr::new("PATH")).cloned().unwrap_or_else(inherited);
        let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
        let mut found = env::split_paths(&path).map(|dir| dir.join(program)).filter(|file| can_run(file));
        match found.next() {
            Some(file) => std::path::absolute(file),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "there is no such program in PATH={} (hint: install it, or give its path)",
                    path.display()
                ),
            )),
        }
    }
}

fn is_private(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PRIVATE_PREFIX.as_bytes())
}

fn can_run(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
