//! The index of the task that a slot runs, for a watcher on another thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::TaskIndex;

/// The value for no task: it is beyond [`TaskIndex::LIMIT`].
const NO_TASK: u64 = u64::MAX;

/// The index of the task whose code a slot runs, or of none.
///
/// The slot writes it with one relaxed store per task, without a lock and without reading the
/// clock. A watcher samples it: if two samples give the same index, that task has run for at least
/// the time between them.
#[derive(Debug)]
pub struct RunningIndex(AtomicU64);

impl Default for RunningIndex {
    fn default() -> Self {
        Self(AtomicU64::new(NO_TASK))
    }
}

impl RunningIndex {
    /// Records that the task at `index` runs from now on.
    pub fn set(&self, index: TaskIndex) {
        self.0.store(index.0, Ordering::Relaxed);
    }

    /// Records that no task runs.
    pub fn clear(&self) {
        self.0.store(NO_TASK, Ordering::Relaxed);
    }

    /// Returns the running task, or none before the first task and while outcomes are emitted.
    #[must_use]
    pub fn get(&self) -> Option<TaskIndex> {
        match self.0.load(Ordering::Relaxed) {
            NO_TASK => None,
            index => Some(TaskIndex(index)),
        }
    }
}
