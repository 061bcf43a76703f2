//! The exit codes of every program.

use std::process::ExitCode;

/// The exit codes of every program of Gristmill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Ok = 0,
    /// The job finished with failed tasks or without an answer, or a ledger does not add up, or
    /// `doctor` found a problem.
    Incomplete = 1,
    /// The command line, the environment or a file named there is not usable.
    Usage = 2,
    /// The broker is unreachable, refuses access, or was lost for longer than `--give-up-after`.
    Broker = 3,
    /// A defect of the program.
    Bug = 4,
    /// Too many of a worker's threads are stuck in tasks that do not end; restart the worker.
    Stuck = 5,
    /// SIGINT or SIGTERM arrived, and work in progress was not ended in order.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
