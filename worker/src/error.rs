//! Why a worker ends before it is told to.

use gristmill_shared::{StoreError, TransportError};

/// Why a worker ends before it is told to. What it had not settled is run again elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The broker is gone, or does not let us.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The broker did not take an outcome.
    #[error("an outcome could not be handed on; its batch runs again elsewhere")]
    Store(#[from] StoreError),
    /// The operating system gives no thread.
    #[error("cannot start a slot's thread (hint: fewer slots, or a higher limit on processes)")]
    Threads(#[source] std::io::Error),
    /// Tasks that do not end have taken too many threads.
    #[error(
        "{threads} threads are stuck in tasks that run on long after their time limit or their job's stop, more than the \
         {slots} slots; what was not begun is handed back (hint: start the worker again, and let the job call cx.check() now and then)"
    )]
    Stuck {
        /// How many.
        threads: u32,
        /// How many slots the worker has.
        slots: u16,
    },
    /// A defect of the worker itself.
    #[error("a part of the worker died; this is a defect of the worker, not of a task")]
    Died,
}
