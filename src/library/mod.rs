//! Running and submitting jobs from code: in one process, or over a broker.

mod client;
mod error;
mod pipeline;
mod run_job;

pub use client::{Client, JobHandle};
pub use error::Error;
pub(crate) use pipeline::{Pipeline, PipelineError, PipelineShutdown};
pub use run_job::{RunOptions, run};
pub(crate) use run_job::{processor_count, run_policy};
