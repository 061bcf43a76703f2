//! A job that a drill has submitted, and the report that it must give.

use gristmill_jobs::{Spin, SpinReport};
use gristmill_shared::JobId;

/// A job that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DrillJob {
    pub(crate) job: JobId,
    pub(crate) tasks: u64,
    /// The seed of its outputs' floats, if they have any.
    pub(crate) float_seed: Option<u32>,
}

impl DrillJob {
    /// Returns the report of a run without faults.
    pub(crate) fn expected(&self) -> SpinReport {
        let (tasks, seed) = (self.tasks, self.float_seed.unwrap_or_default().into());
        Spin { tasks, floats: self.float_seed.is_some(), seed, ..Spin::default() }.expected()
    }
}
