//! The ack of a batch, held back until the broker has confirmed all that follows from it.

use std::sync::Arc;

use gristmill_shared::fail_point::{FailPoint, reached};
use tokio::sync::OwnedSemaphorePermit;

use crate::delivery::InFlightBatch;

/// One pending part of a batch. A guard that is dropped without [`AckGuard::complete`] leaves the
/// batch unacked, so that it is delivered again.
#[derive(Debug)]
pub(super) struct AckGuard {
    batch: Arc<InFlightBatch>,
    /// The bytes that all parts of a request take, until the last of them is stored.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl AckGuard {
    pub(super) fn new(batch: Arc<InFlightBatch>, permit: Arc<OwnedSemaphorePermit>) -> Self {
        Self { batch, _permit: permit }
    }

    /// Completes the part: its message is stored.
    pub(super) fn complete(self) {
        reached(FailPoint::WorkerStored);
        self.batch.complete_part();
    }
}
