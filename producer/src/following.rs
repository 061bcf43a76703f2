//! What the jobs of one producer share: lanes that are open, and one reader of the journal.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use gristmill_shared::{JobBoard, Lane, Transport, TransportError};
use tokio_util::task::AbortOnDropHandle;

use crate::ProducerError;

/// Made when they are first needed, and kept for as long as the producer or one of its submissions lives.
#[derive(Debug, Default)]
pub(crate) struct Commons {
    lanes: Mutex<BTreeSet<Lane>>,
    following: OnceLock<Following>,
}

impl Commons {
    /// Opens a lane, the first time.
    pub(crate) async fn open_lane(
        &self,
        transport: &dyn Transport,
        lane: &Lane,
    ) -> Result<(), TransportError> {
        if self.lanes().contains(lane) {
            return Ok(());
        }
        transport.open_lane(lane).await?;
        self.lanes().insert(lane.clone());
        Ok(())
    }

    /// The journal's reader, on the runtime that asks first. After a lane was opened, which makes the journal.
    pub(crate) fn following(&self, transport: &Arc<dyn Transport>) -> &Following {
        self.following.get_or_init(|| Following::start(Arc::clone(transport)))
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeSet<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the journal in the background, until it is dropped.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) board: Arc<JobBoard>,
    /// Why it ended; nothing if its runtime did.
    end: Shared<BoxFuture<'static, Option<TransportError>>>,
}

impl Following {
    fn start(transport: Arc<dyn Transport>) -> Self {
        let (board, following) = JobBoard::start(transport);
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        Self { board, end: following.map(Result::ok).boxed().shared() }
    }

    /// Waits until it knows which jobs had ended when it began.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub(crate) async fn caught_up(&self) -> Result<(), ProducerError> {
        tokio::select! {
            () = self.board.caught_up() => Ok(()),
            lost = self.lost() => Err(lost),
        }
    }

    /// Waits until the journal cannot be followed any more.
    pub(crate) async fn lost(&self) -> ProducerError {
        self.end.clone().await.map_or(ProducerError::Died, ProducerError::from)
    }
}
