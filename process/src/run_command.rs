//! `cx.run`: a command for a task, which ends with the task.

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
    capture::{Capture, TooMuch},
    command::{Command, STDERR_TAIL_BYTES, StdoutBound},
    group::{ChildGroup, Streams, runtime},
    output::CommandOutput,
};

/// Time for which the pipes are read after the group has ended: a process that has left the group
/// may hold them open.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);

/// Runs commands for a task. An extension of [`TaskContext`].
pub trait RunCommand {
    /// Runs a command and waits until it has exited and its output is read. Blocks the calling
    /// thread.
    ///
    /// # Errors
    /// The error of [`TaskContext::check`], if the job is stopped or the deadline passes: the
    /// command's process group gets SIGTERM then, and SIGKILL one second later. A failure that can
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
        running.result.recv().unwrap_or_else(|_| Err(watcher_gone()))
    }

    async fn run_async(&self, command: Command) -> Result<CommandOutput, TaskError> {
        let running = start(self, command)?;
        running.result.recv_async().await.unwrap_or_else(|_| Err(watcher_gone()))
    }
}

/// A command that is watched on the runtime. Dropping it ends the command.
struct Running {
    result: flume::Receiver<Result<CommandOutput, TaskError>>,
    _dropped: DropGuard,
}

fn start(cx: &TaskContext, command: Command) -> Result<Running, TaskError> {
    cx.check()?;
    let program = command.shown();
    let cannot = |error| TaskError::failed(format_args!("cannot run `{program}`: {error}"));
    let group = ChildGroup::spawn(&command, !command.stdin.is_empty()).map_err(cannot)?;
    let dropped = CancellationToken::new();
    let (sender, result) = flume::bounded(1);
    let watch = Watch { cx: cx.clone(), program: program.clone(), dropped: dropped.clone() };
    let Command { stdin, stdout, .. } = command;
    runtime().map_err(cannot)?.spawn(async move {
        let result = watch.run(group, &stdin, stdout).await;
        let _ = sender.send_async(result).await; // the caller may have gone
    });
    Ok(Running { result, _dropped: dropped.drop_guard() })
}

fn watcher_gone() -> TaskError {
    TaskError::failed("a command was lost; this is a defect of gristmill-process")
}

/// The end of a command.
enum End {
    Exit,
    TooMuch(TooMuch),
    /// The task must end.
    Interrupt,
}

struct Watch {
    cx: TaskContext,
    program: String,
    dropped: CancellationToken,
}

impl Watch {
    async fn run(
        &self,
        mut group: ChildGroup,
        input: &[u8],
        bound: StdoutBound,
    ) -> Result<CommandOutput, TaskError> {
        let Some(Streams { stdin, stdout: out, stderr: err }) = group.take_streams() else {
            return Err(watcher_gone());
        };
        let mut stdout = Capture::new(bound);
        let mut stderr = Capture::new(StdoutBound::Tail(STDERR_TAIL_BYTES));
        let (end, status) = {
            let mut streams = pin!(async {
                tokio::try_join!(feed(stdin, input), stdout.read(out), stderr.read(err)).map(drop)
            });
            let mut at_end = false;
            let end = tokio::select! {
                biased;
                () = self.interrupted() => End::Interrupt,
                too_much = exceeded(&mut streams, &mut at_end) => End::TooMuch(too_much),
                () = group.exited() => End::Exit,
            };
            match end {
                // Its last words find room in the pipes meanwhile.
                End::Interrupt => tokio::select! {
                    () = group.terminate() => {}
                    () = async {
                        exceeded(&mut streams, &mut at_end).await;
                        pending().await
                    } => {}
                },
                End::TooMuch(_) => group.terminate().await,
                End::Exit => {}
            }
            let status = group.finish();
            match end {
                End::Exit if !at_end => match timeout(DRAIN_PATIENCE, &mut streams).await {
                    Ok(Err(too_much)) => (End::TooMuch(too_much), status),
                    Ok(Ok(())) | Err(_) => (End::Exit, status),
                },
                end => (end, status),
            }
        };
        let program = &self.program;
        match end {
            End::Exit => {}
            End::Interrupt => {
                self.cx.check()?;
                return Err(watcher_gone()); // the caller has dropped it, and reads no result
            }
            End::TooMuch(TooMuch(max)) => {
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

    /// Waits until the task must end, or its caller has gone.
    async fn interrupted(&self) {
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

/// Reads and writes until the bound is exceeded. Never returns if all streams end before that.
async fn exceeded(
    mut streams: impl Future<Output = Result<(), TooMuch>> + Unpin,
    at_end: &mut bool,
) -> TooMuch {
    if !*at_end {
        let result = (&mut streams).await;
        *at_end = true;
        if let Err(too_much) = result {
            return too_much;
        }
    }
    pending().await
}

/// Writes the input and closes it. A program that does not read all of its input is no error.
async fn feed(stdin: Option<Sender>, input: &[u8]) -> Result<(), TooMuch> {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input).await;
    }
    Ok(())
}
