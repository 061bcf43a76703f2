//! The child process of a slot with `worker --isolate`: another instance of this program.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use clap::{ArgMatches, FromArgMatches as _, ValueEnum as _};
use gristmill_process::Command;
use gristmill_shared::{Registry, TransportRegistry};
use gristmill_worker::serve_isolated;
use rustix::{io::fcntl_dupfd_cloexec, stdio};

use super::{
    CommandResult, Context,
    flags::LogFlags,
    log::{self, LogFormat},
    program_name,
    progress_bar::ProgressDisplay,
};
use crate::{Exit, Role, exit::Failure};

/// The first argument of a child. Two more give its log filter and log format. Internal: only a
/// worker starts children.
const CHILD_FLAG: &str = "--isolated-child";

/// The file of this program, even after another version has replaced it on disk.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The lowest file descriptor of the child's two pipes: the standard ones are for user code.
const PIPE_FD_MIN: i32 = 3;

/// Returns the command that starts this program as a child with the log settings of this process.
/// The child gets no `GRISTMILL_…` variables.
pub(super) fn command(context: &Context, matches: &ArgMatches) -> Result<Command, Failure> {
    let logging = LogFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let format = logging.format().to_possible_value();
    let format = format.map(|value| value.get_name().to_owned()).unwrap_or_default();
    let filter = logging.filter(&context.transports).unwrap_or_default();
    Ok(Command::new(OWN_PROGRAM).name(program_name()).args([CHILD_FLAG, &filter, &format]))
}

/// Returns the arguments after the flag, if this process is a child.
pub(super) fn child_args() -> Option<Vec<OsString>> {
    let mut args = env::args_os().skip(1);
    (args.next()? == CHILD_FLAG).then(|| args.collect())
}

/// Runs the batches that the worker sends, until the worker closes the pipe. `transports` silence
/// their libraries in the default log filter.
pub(super) fn serve_child(
    registry: Registry,
    transports: &TransportRegistry,
    args: &[OsString],
) -> CommandResult {
    let text = |place: usize| args.get(place).and_then(|arg| arg.to_str()).unwrap_or_default();
    let format = log::fix_format(LogFormat::from_str(text(1), false).unwrap_or_default());
    let filter = Some(text(0).to_owned()).filter(|filter| !filter.is_empty());
    let default = log::default_filter(Role::Worker, transports);
    log::init(filter, default, format, &ProgressDisplay::hidden(), None);
    let (requests, answers) = take_pipes().map_err(|error| {
        Failure::usage(format_args!(
            "{CHILD_FLAG}: cannot take over the worker's pipes: {error} (hint: only a worker starts this)"
        ))
    })?;
    match serve_isolated(registry, requests, answers) {
        Ok(()) => Ok(Exit::Ok),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Ok), // the worker has gone
        Err(error) => Err(Failure::new(Exit::Bug, format_args!("the child process of a slot: {error}"))),
    }
}

/// Takes over the pipes of standard input and output. User code then has an empty input, prints
/// into the log, and passes neither pipe on to its own processes.
fn take_pipes() -> io::Result<(File, File)> {
    let requests: OwnedFd = fcntl_dupfd_cloexec(io::stdin().as_fd(), PIPE_FD_MIN)?;
    let answers: OwnedFd = fcntl_dupfd_cloexec(io::stdout().as_fd(), PIPE_FD_MIN)?;
    stdio::dup2_stdin(File::open("/dev/null")?)?;
    stdio::dup2_stdout(io::stderr())?;
    Ok((requests.into(), answers.into()))
}
