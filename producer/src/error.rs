//! Errors of a producer.

use std::time::Duration;

use gristmill_shared::{JobError, JobId, Lane, PublishError, Shards, TaskIndex, TransportError};

use crate::CursorError;

/// An error that ends a submission.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProducerError {
    /// The job refused its parameters. Nothing was sent.
    #[error("{0}")]
    Plan(JobError),
    /// The split failed. The job is ended, with the reason in its conclusion.
    #[error("{0}; the job was ended")]
    Split(JobError),
    /// The tasks that were sent before cannot be split again now. The job stays as it is.
    #[error(
        "job {job} cannot be split again here: {error}; the job is as it was (hint: put its input back in its place, \
         then run `producer resume {job}`, with --missing if it had been sent whole)"
    )]
    InputUnavailable {
        /// The job.
        job: JobId,
        /// The error of the job's split or of its
        /// [`with_local`](gristmill_shared::Job::with_local).
        error: JobError,
    },
    /// The connection is lost, or the broker refused access.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The broker did not store a message.
    #[error("a message could not be published")]
    Store(#[from] PublishError),
    /// The cursor cannot be read or saved.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The job differs from what was submitted.
    #[error("{0}")]
    Changed(String),
    /// The job needs more shards than its lane has. Nothing was sent.
    #[error(
        "lane {lane} has {there} of the {shards} shards that the job needs (hint: start a worker with --shards {shards} first, \
         or run `gristmill setup --lane {lane} --shards {shards}` where workers may not create shards, and \
         restart the other workers: a worker consumes the shards that exist when it starts)"
    )]
    TooFewShards {
        /// The job's lane.
        lane: Lane,
        /// The number that was asked for.
        shards: Shards,
        /// The number that exists.
        there: Shards,
    },
    /// The question which tasks are missing was not answered.
    #[error(
        "no sink answered within {} s which tasks are missing (hint: check that a sink serves lane {lane}; the \
         question stays in its queue, so ask again when it runs)", .waited.as_secs()
    )]
    NoAnswer {
        /// The job's lane.
        lane: Lane,
        /// The duration of the wait.
        waited: Duration,
    },
    /// The operating system refused a thread.
    #[error("cannot start the thread that splits")]
    Thread(#[source] std::io::Error),
    /// A defect of the producer itself.
    #[error("the thread that splits ended unexpectedly; this is a defect of the producer, not of the job")]
    ThreadDied,
}

impl ProducerError {
    /// Returns the error for a split whose first `among` tasks differ from those that were sent.
    pub(crate) fn split_changed(among: TaskIndex) -> Self {
        Self::Changed(format!(
            "the job's split gives other tasks than it gave before, somewhere in its first {among} (hint: its input or the \
             program changed; cancel it and submit it again)"
        ))
    }
}
