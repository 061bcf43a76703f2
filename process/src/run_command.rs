//! `cx.run`: commands that end with their task.

use std::{
    future::{Future, pending},
    pin::pin,
    time::Duration,
};

use gristmill_shared::{TaskContext, TaskError};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe::Sender,
    time::{sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    capture::{Capture, OutputExceeded},
    command::{Command, STDERR_TAIL_BYTES, StdoutBound},
    group::{ChildGroup, Streams, runtime},
    output::CommandOutput,
};

/// The time for which the pipes are read after the group has ended: a process that has left the
/// group may hold them open.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);

/// An extension of [`TaskContext`] that runs commands for a task.
pub trait RunCommand {
    /// Runs a command and waits until it has exited and its output is read. Blocks the calling
    /// thread.
    ///
    /// # Errors
    /// The error of [`TaskContext::check`], if the job is stopped or the deadline passes. The
    /// command's process group then gets SIGTERM, and SIGKILL one second later. A failure that can
    /// be retried, if the program cannot be started or writes more than its bound. An exit code
    /// other than 0 is no error here, see [`CommandOutput::ok`].
    fn run(&self, command: Command) -> Result<CommandOutput, TaskError>;

    /// Like [`RunCommand::run`], for async code. Dropping the future ends the command's process
    /// group.
    ///
    /// # Errors
    /// The same as [`RunCommand::run`].
    fn run_async(&self, command: Command) -> impl Future<Output = Result<CommandOutput, TaskError>> + Send;
}

impl RunCommand for TaskContext {
    fn run(&self, command: Command) -> Result<CommandOutput, TaskError> {
        let running = start(self, command)?;
        running.result.recv().unwrap_or_else(|_| Err(watcher_lost()))
    }

    async fn run_async(&self, command: Command) -> Result<CommandOutput, TaskError> {
        let running = start(self, command)?;
        running.result.recv_async().await.unwrap_or_else(|_| Err(watcher_lost()))
    }
}

/// A command that is watched on the runtime. Dropping it ends the command.
struct RunningCommand {
    result: flume::Receiver<Result<CommandOutput, TaskError>>,
    _dropped: DropGuard,
}

fn start(cx: &TaskContext, command: Command) -> Result<RunningCommand, TaskError> {
    cx.check()?;
    let program = command.program_text();
    let cannot = |error| TaskError::failed(format_args!("cannot run `{program}`: {error}"));
    let group = ChildGroup::spawn(&command, !command.stdin.is_empty()).map_err(cannot)?;
    let dropped = CancellationToken::new();
    let (sender, result) = flume::bounded(1);
    let watch = CommandWatch { cx: cx.clone(), program: program.clone(), dropped: dropped.clone() };
    let Command { stdin, stdout, .. } = command;
    runtime().map_err(cannot)?.spawn(async move {
        let result = watch.run(group, &stdin, stdout).await;
        let _ = sender.send_async(result).await; // the caller may have gone
    });
    Ok(RunningCommand { result, _dropped: dropped.drop_guard() })
}

fn watcher_lost() -> TaskError {
    TaskError::failed("a command was lost; this is a defect of gristmill-process")
}

/// The reason for the end of a command.
enum CommandEnd {
    Exit,
    Exceeded(OutputExceeded),
    /// The task must end.
    Interrupt,
}

/// The watcher of one command.
struct CommandWatch {
    cx: TaskContext,
    program: String,
    dropped: CancellationToken,
}

impl CommandWatch {
    async fn run(
        &self,
        mut group: ChildGroup,
        input: &[u8],
        bound: StdoutBound,
    ) -> Result<CommandOutput, TaskError> {
        let Some(Streams { stdin, stdout: out, stderr: err }) = group.take_streams() else {
            return Err(watcher_lost());
        };
        let mut stdout = Capture::new(bound);
        let mut stderr = Capture::new(StdoutBound::Tail(STDERR_TAIL_BYTES));
        let (end, status) = {
            let mut streams = pin!(async {
                tokio::try_join!(write_input(stdin, input), stdout.read(out), stderr.read(err)).map(drop)
            });
            let mut at_end = false;
            let end = tokio::select! {
                biased;
                () = self.wait_interrupted() => CommandEnd::Interrupt,
                excess = wait_exceeded(&mut streams, &mut at_end) => CommandEnd::Exceeded(excess),
                () = group.exited() => CommandEnd::Exit,
            };
            match end {
                // The pipes are read meanwhile, so that the command can write while it ends.
                CommandEnd::Interrupt => tokio::select! {
                    () = group.terminate() => {}
                    () = async {
                        wait_exceeded(&mut streams, &mut at_end).await;
                        pending().await
                    } => {}
                },
                CommandEnd::Exceeded(_) => group.terminate().await,
                CommandEnd::Exit => {}
            }
            let status = group.finish();
            match end {
                CommandEnd::Exit if !at_end => match timeout(DRAIN_PATIENCE, &mut streams).await {
                    Ok(Err(excess)) => (CommandEnd::Exceeded(excess), status),
                    Ok(Ok(())) | Err(_) => (CommandEnd::Exit, status),
                },
                end => (end, status),
            }
        };
        let program = &self.program;
        match end {
            CommandEnd::Exit => {}
            CommandEnd::Interrupt => {
                self.cx.check()?;
                return Err(watcher_lost()); // the caller has dropped the command and reads no result
            }
            CommandEnd::Exceeded(OutputExceeded(max)) => {
                return Err(TaskError::failed(format_args!(
                    "the command `{program}` wrote more than {max} bytes on its standard output and was ended (hint: \
                     raise the bound with Command::stdout_max, or keep the end with Command::stdout_tail)"
                )));
            }
        }
        let status = status.map_err(|error| {
            TaskError::failed(format_args!("the end of the command `{program}`: {error}"))
        })?;
        let ((stdout, stdout_omitted), (stderr, stderr_omitted)) = (stdout.finish(), stderr.finish());
        Ok(CommandOutput { program: program.clone(), status, stdout, stdout_omitted, stderr, stderr_omitted })
    }

    /// Waits until the task must end, or its caller is gone.
    async fn wait_interrupted(&self) {
        let deadline = async {
            match self.cx.deadline() {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.cx.stopped() => {}
            () = deadline => {}
            () = self.dropped.cancelled() => {}
        }
    }
}

/// Reads and writes until the bound is exceeded. Pending forever if all streams end before that.
async fn wait_exceeded(
    mut streams: impl Future<Output = Result<(), OutputExceeded>> + Unpin,
    at_end: &mut bool,
) -> OutputExceeded {
    if !*at_end {
        let result = (&mut streams).await;
        *at_end = true;
        if let Err(excess) = result {
            return excess;
        }
    }
    pending().await
}

/// Writes the input and closes it. A program that does not read all of its input is no error.
async fn write_input(stdin: Option<Sender>, input: &[u8]) -> Result<(), OutputExceeded> {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input).await;
    }
    Ok(())
}
