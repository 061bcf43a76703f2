//! The reasons for a worker to end early.

use gristmill_shared::{PublishError, TransportError};

/// The reason why a worker ended before its shutdown was requested. Batches that it had not settled
/// run again elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The broker is gone, or refuses the connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The broker did not take an outcome.
    #[error("an outcome could not be published; its batch runs again elsewhere")]
    Store(#[from] PublishError),
    /// The operating system refuses another thread.
    #[error("cannot start a slot's thread (hint: fewer slots, or a higher limit on processes)")]
    Threads(#[source] std::io::Error),
    /// Tasks that do not end hold too many threads.
    #[error(
        "{threads} threads are stuck in tasks that run on long after their time limit or their job's stop, more than the \
         {slots} slots; what was not begun is returned to the queue (hint: start the worker again, and let the job call cx.check() now and then)"
    )]
    Stuck {
        /// Number of stuck threads.
        threads: u32,
        /// Number of slots of the worker.
        slots: u16,
    },
    /// A defect of the worker itself.
    #[error("a part of the worker died; this is a defect of the worker, not of a task")]
    Died,
}
