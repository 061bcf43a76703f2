//! What the jobs of one producer share: lanes that are open, one reader of the journal, and one listener to ends for each lane.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use gristmill_shared::{
    EventFilter, EventReader, JobBoard, Lane, Shards, Transport, TransportError,
    wire::{Finished, Form},
};
use tokio_util::task::AbortOnDropHandle;

use crate::ProducerError;

/// Made when they are first needed, and kept for as long as the producer or one of its submissions lives.
#[derive(Debug, Default)]
pub(crate) struct Commons {
    /// Those that are open, and how many shards are known to be there.
    lanes: Mutex<BTreeMap<Lane, Shards>>,
    following: OnceLock<Following>,
    /// Who listens to which lane; nobody where that was refused.
    listening: tokio::sync::Mutex<BTreeMap<Lane, Option<AbortOnDropHandle<()>>>>,
}

impl Commons {
    /// Opens a lane, the first time, and sees whether it has so many shards. It makes none, since nobody might take from
    /// them.
    pub(crate) async fn open_lane(
        &self,
        transport: &dyn Transport,
        lane: &Lane,
        shards: Shards,
    ) -> Result<(), ProducerError> {
        let known = self.lanes().get(lane).copied();
        if known.is_none() {
            transport.open_lane(lane).await?;
        }
        let mut there = known.unwrap_or_default();
        if there < shards {
            there = transport.open_shards(lane, Shards::ONE).await?;
        }
        self.lanes().insert(lane.clone(), there);
        if there < shards {
            return Err(ProducerError::TooFewShards { lane: lane.clone(), shards, there });
        }
        Ok(())
    }

    /// The journal's reader, on the runtime that asks first. After a lane was opened, which makes the journal.
    pub(crate) fn following(&self, transport: &Arc<dyn Transport>) -> &Following {
        self.following.get_or_init(|| Following::start(Arc::clone(transport)))
    }

    /// Has the board hear of the ends of a lane's jobs as they are told live, which is sooner than the journal can be read.
    /// It need not succeed, since the journal tells everything.
    pub(crate) async fn listen(&self, transport: &Arc<dyn Transport>, lane: &Lane) {
        let mut listening = self.listening.lock().await;
        if listening.contains_key(lane) {
            return;
        }
        let hearing = match transport.events(EventFilter::Lane(lane.clone())).await {
            Ok(events) => {
                let board = Arc::clone(&self.following(transport).board);
                Some(AbortOnDropHandle::new(tokio::spawn(hear_ends(events, board))))
            }
            Err(error) => {
                tracing::debug!(%lane, %error, "ends of jobs are not heard live; the journal tells them");
                if error.is_retryable() {
                    return; // the next job tries again
                }
                None
            }
        };
        listening.insert(lane.clone(), hearing);
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<Lane, Shards>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the journal in the background, until the last clone is dropped.
#[derive(Debug, Clone)]
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

/// Until the connection goes, which the journal's reader says.
async fn hear_ends(mut events: Box<dyn EventReader>, board: Arc<JobBoard>) {
    while let Ok(event) = events.next().await {
        if event.form == Finished::FORM {
            board.hear(&event);
        }
    }
}
