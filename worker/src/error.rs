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
    /// A defect of the worker itself.
    #[error("a part of the worker died; this is a defect of the worker, not of a task")]
    Died,
}
