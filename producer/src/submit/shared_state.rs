//! The state that the jobs of one producer share: open lanes, one reader of the journal, and one
//! subscription to ends for each lane.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use gristmill_shared::{
    EventFilter, EventReader, JobTracker, Lane, Shards, Transport, TransportError,
    wire::{Finished, WireMessage},
};
use tokio_util::task::AbortOnDropHandle;

use crate::ProducerError;

/// Shared state, created on demand and kept until the producer and its submissions are dropped.
#[derive(Debug, Default)]
pub(crate) struct ProducerShared {
    /// The open lanes, and the number of their shards as far as it is known.
    lanes: Mutex<BTreeMap<Lane, Shards>>,
    follower: OnceLock<JournalFollower>,
    /// The task that reads the ends of each lane; `None` where the subscription was refused.
    end_listeners: tokio::sync::Mutex<BTreeMap<Lane, Option<AbortOnDropHandle<()>>>>,
}

impl ProducerShared {
    /// Opens a lane once, and checks that it has enough shards. It creates none, since there may be
    /// no worker that takes from them.
    ///
    /// # Errors
    /// [`ProducerError::TooFewShards`], or if the broker fails.
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

    /// Returns the follower of the journal, which runs on the runtime that asks first. The journal
    /// exists once a lane was opened.
    pub(crate) fn follower(&self, transport: &Arc<dyn Transport>) -> &JournalFollower {
        self.follower.get_or_init(|| JournalFollower::start(Arc::clone(transport)))
    }

    /// Subscribes the job board to the ends of a lane's jobs as they are published live, sooner
    /// than the journal can be read. Best effort, since the journal has every end.
    pub(crate) async fn subscribe_ends(&self, transport: &Arc<dyn Transport>, lane: &Lane) {
        let mut end_listeners = self.end_listeners.lock().await;
        if end_listeners.contains_key(lane) {
            return;
        }
        let listener = match transport.events(EventFilter::Lane(lane.clone())).await {
            Ok(events) => {
                let board = Arc::clone(&self.follower(transport).board);
                Some(AbortOnDropHandle::new(tokio::spawn(forward_ends(events, board))))
            }
            Err(error) => {
                tracing::debug!(%lane, %error, "cannot subscribe to the ends of jobs; reading them from the journal");
                if error.is_retryable() {
                    return; // the next job tries again
                }
                None
            }
        };
        end_listeners.insert(lane.clone(), listener);
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<Lane, Shards>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A background reader of the journal, which runs until the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct JournalFollower {
    pub(crate) board: Arc<JobTracker>,
    /// The reason of its end; `None` if its runtime was shut down.
    termination: Shared<BoxFuture<'static, Option<TransportError>>>,
}

impl JournalFollower {
    fn start(transport: Arc<dyn Transport>) -> Self {
        let (board, following) = JobTracker::start(transport);
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        Self { board, termination: following.map(Result::ok).boxed().shared() }
    }

    /// Waits until the follower knows which jobs had ended when it began.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub(crate) async fn wait_caught_up(&self) -> Result<(), ProducerError> {
        tokio::select! {
            () = self.board.wait_caught_up() => Ok(()),
            lost = self.connection_lost() => Err(lost),
        }
    }

    /// Waits until the journal cannot be followed any more, and returns the reason.
    pub(crate) async fn connection_lost(&self) -> ProducerError {
        self.termination.clone().await.map_or(ProducerError::ThreadDied, ProducerError::from)
    }
}

/// Forwards ends to the job board until the connection is lost, which the follower reports.
async fn forward_ends(mut events: Box<dyn EventReader>, board: Arc<JobTracker>) {
    while let Ok(event) = events.next().await {
        if event.form == Finished::TYPE {
            board.apply_event(&event);
        }
    }
}
