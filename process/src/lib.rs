//! Child processes that never outlive the task that started them.
//!
//! [`RunCommand::run`] runs a [`Command`] for a task. The command leads a process group of its own.
//! The group gets SIGTERM, and SIGKILL one second later, when the job is stopped, when the task's
//! deadline passes, and when the worker takes the task from its thread. When the command has
//! exited, the rest of its group is killed. If the worker itself dies, even of SIGKILL, a separate
//! `sh` ends all remaining groups, and all processes whose environment has the worker's mark,
//! `GRISTMILL_LEASH`.
//!
//! A process that leaves its group by `setsid` outlives its command, and ends with the worker. One
//! that clears its environment as well survives.
//!
//! ```
//! use gristmill_process::{Command, RunCommand};
//! # use gristmill_shared::{JobId, StopSignal, TaskContext, TaskError, TaskIndex};
//!
//! fn words(text: &str, cx: &TaskContext) -> Result<u64, TaskError> {
//!     let output = cx.run(Command::new("wc").arg("-w").stdin(text))?.ok()?;
//!     Ok(output.stdout_text()?.trim().parse()?)
//! }
//! # let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
//! # assert_eq!(words("to be or not", &cx).unwrap(), 4);
//! ```

mod capture;
mod command;
mod group;
mod leash;
mod output;
mod run_command;

pub use command::{Command, STDERR_TAIL_BYTES, STDOUT_MAX_BYTES};
pub use group::{ChildGroup, KILL_DELAY, runtime};
pub use output::{CommandOutput, exit_reason};
pub use run_command::RunCommand;
