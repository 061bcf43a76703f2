//! The threads that run user code: a pool of slots, each with a lease on the batch that it runs.

mod held_task;
mod job_cache;
mod lease;
mod pool;
mod slot;

pub(crate) use job_cache::{JobCache, drop_job};
pub(crate) use lease::SlotLease;
pub(crate) use pool::SlotPool;
