//! Why a producer gives up.

use std::time::Duration;

use gristmill_shared::{JobError, Lane, Shards, StoreError, TaskIndex, TransportError};

use crate::CursorError;

/// Why a producer gives up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProducerError {
    /// The job refused its parameters; nothing was sent.
    #[error("{0}")]
    Plan(JobError),
    /// The split failed; the job has been ended and the sink says why.
    #[error("{0}; the job was ended")]
    Split(JobError),
    /// The broker is gone, or does not let us.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The broker did not take a message.
    #[error("a message could not be published")]
    Store(#[from] StoreError),
    /// The cursor cannot be read or saved.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The job is not what it was when it was submitted.
    #[error("{0}")]
    Changed(String),
    /// The job is to be spread over more shards than its lane has. Nothing was sent.
    #[error(
        "lane {lane} has {there} of the {shards} shards that the job is to be sent to (hint: start a worker with --shards \
         {shards} first, or run `gristmill setup --lane {lane} --shards {shards}` where workers may make none, and start the others again: a worker takes from the shards that are there when it starts)"
    )]
    TooFewShards {
        /// The job's lane.
        lane: Lane,
        /// How many were asked for.
        shards: Shards,
        /// How many there are.
        there: Shards,
    },
    /// Nobody answered what tasks are missing.
    #[error(
        "no sink said within {} s which tasks are missing (hint: is one running on lane {lane}? the question waits for it; \
         ask again when it runs)", .waited.as_secs()
    )]
    NoAnswer {
        /// The job's lane.
        lane: Lane,
        /// How long.
        waited: Duration,
    },
    /// The operating system gives no thread.
    #[error("cannot start the thread that splits")]
    Thread(#[source] std::io::Error),
    /// A defect of the producer itself.
    #[error("the thread that splits died; this is a defect of the producer, not of the job")]
    Died,
}

impl ProducerError {
    /// The split gives other tasks than it gave, among the first so many.
    pub(crate) fn split_changed(among: TaskIndex) -> Self {
        Self::Changed(format!(
            "the job's split gives other tasks than it gave before, somewhere in its first {among} (hint: its input or the \
             program changed; cancel it and submit it anew)"
        ))
    }
}
