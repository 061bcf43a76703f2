//! The errors of a job that was run or submitted from code and gives no outcome.

use std::io;

use gristmill_ledger::LedgerError;
use gristmill_producer::{OutcomeError, ProducerError};
use gristmill_shared::{NoReport, RegisterError, TransportError};
use gristmill_sink::SinkError;
use gristmill_worker::WorkerError;

use super::PipelineError;

/// The reason why [`run`](crate::run) or a [`Client`](crate::Client) gives no outcome.
///
/// A job that ends with failed tasks or without an answer is not an error: its
/// [`Outcome`](crate::Outcome) says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker cannot be reached, or the connection is lost.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The job was refused, or could not be split or sent.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The worker in this process ended early.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The sink in this process cannot serve its lane.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The job's kind has a name that cannot be transmitted.
    #[error(transparent)]
    Kind(#[from] RegisterError),
    /// The job has ended, but its report is not available.
    #[error(transparent)]
    Report(#[from] NoReport),
    /// The operating system could not start a thread.
    #[error("cannot start the threads that run the job")]
    Thread(#[source] io::Error),
    /// A defect of Gristmill.
    #[error("{0}; this is a defect of Gristmill, not of the job")]
    Defect(String),
}

impl From<LedgerError> for Error {
    fn from(error: LedgerError) -> Self {
        Self::Sink(error.into())
    }
}

impl From<OutcomeError> for Error {
    fn from(error: OutcomeError) -> Self {
        match error {
            OutcomeError::Transport(error) => error.into(),
            OutcomeError::Report(error) => error.into(),
            error => Self::Defect(error.to_string()),
        }
    }
}

impl From<PipelineError> for Error {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Sink(error) => error.into(),
            PipelineError::Worker(error) => error.into(),
            PipelineError::EndedEarly => Self::Defect(error.to_string()),
        }
    }
}
