//! The tasks that hold threads of a worker, as the log and heartbeats report them.

use std::time::Instant;

use gristmill_shared::{
    Headers, JobId, Kind, StopSignal, TaskIndex,
    wire::{Batch, RunningTask},
};

/// The identity of a batch on a slot, and the stop signal of its job.
#[derive(Clone, Debug)]
pub(crate) struct RunningBatch {
    pub(crate) job: JobId,
    pub(crate) kind: Kind,
    pub(crate) first: TaskIndex,
    pub(crate) count: u32,
    pub(crate) attempt: u32,
    pub(crate) stop: StopSignal,
}

impl RunningBatch {
    pub(crate) fn new(batch: &Batch<'_>, headers: &Headers, stop: StopSignal) -> Self {
        Self {
            job: batch.job,
            kind: batch.kind.clone(),
            first: batch.first,
            count: batch.count,
            attempt: headers.attempt.saturating_add(1),
            stop,
        }
    }
}

/// A task that holds a thread.
#[derive(Clone, Debug)]
pub(crate) struct HeldTask {
    pub(crate) batch: RunningBatch,
    pub(crate) index: TaskIndex,
    /// The time when it began, or was first seen to run.
    pub(crate) since: Instant,
    /// True if its thread has lost the slot.
    pub(crate) stuck: bool,
}

impl HeldTask {
    /// Returns the task for a heartbeat. `now` and `now_ms` are the same moment on both clocks.
    pub(crate) fn to_wire(&self, slot: u32, now: Instant, now_ms: u64) -> RunningTask {
        let age = now.saturating_duration_since(self.since).as_millis();
        let RunningBatch { job, kind, first, count, attempt, stop } = &self.batch;
        RunningTask {
            job: *job,
            kind: kind.clone(),
            first: *first,
            count: *count,
            index: self.index,
            attempt: *attempt,
            slot,
            since_ms: now_ms.saturating_sub(u64::try_from(age).unwrap_or(u64::MAX)),
            stuck: self.stuck,
            stopped: stop.is_stopped(),
        }
    }
}
