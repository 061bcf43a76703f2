//! Slots whose batches run in a child process: the same program, one child a slot.
//!
//! The child reads requests and writes answers, one JSON value a line (`protocol.rs`). `proxy.rs`
//! is the worker's side of a batch, `child_process.rs` the process as the worker sees it, and
//! `serve.rs` the program inside the child. The format is internal: both sides are the same
//! executable.

mod answers;
mod child_process;
mod protocol;
mod proxy;
mod serve;
#[cfg(test)]
mod serve_tests;
mod stderr;
#[cfg(test)]
mod tests;

pub(crate) use proxy::{IsolatedSlot, JobTraits};
pub use serve::serve_isolated;

use std::time::Duration;

use gristmill_process::Command;

use crate::DEFAULT_STOP_GRACE;

/// The child processes that run the batches of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Isolation {
    /// Starts this program as a child, which calls [`serve_isolated`].
    pub(crate) command: Command,
    /// Time that a running task may take to end after its job was stopped, before its child is
    /// killed.
    pub(crate) stop_grace: Duration,
}

impl Isolation {
    pub(crate) fn new(command: Command) -> Self {
        Self { command, stop_grace: DEFAULT_STOP_GRACE }
    }
}
