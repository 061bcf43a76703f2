//! Running and submitting jobs from code: in one process, or over a broker.

mod client;
mod error;
mod pipeline;
mod run_job;

pub use client::{Client, JobHandle};
pub use error::Error;
pub(crate) use pipeline::{Pipeline, PipelineError, PipelineShutdown};
pub(crate) use run_job::{RUN_RETRY_DELAYS_MS, processor_count};
pub use run_job::{RunOptions, run};
