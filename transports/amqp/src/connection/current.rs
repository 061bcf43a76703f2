//! Access to the current generation, for all parts that use the connections.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
};

use gristmill_shared::{Health, Lane, QueueRole, Shards, TransportError};
use tokio::sync::watch;

use super::{degraded::Degradations, generation::Generation, termination::Termination};
use crate::{
    config::AmqpConfig,
    topology::{self, DeclareSession, JOURNAL_QUEUE},
};

/// Access to the current generation. It does not keep the connections open.
#[derive(Clone, Debug)]
pub(crate) struct CurrentConnection {
    pub(crate) config: Arc<AmqpConfig>,
    /// The final termination, after which there is no further generation.
    pub(crate) end: Termination,
    pub(super) generations: watch::Receiver<Option<Arc<Generation>>>,
    pub(super) health: watch::Sender<Health>,
    /// Opened lanes, with the largest number of shards seen; declared again after a reconnect,
    /// because the broker may have lost them.
    pub(super) lanes: Arc<Mutex<BTreeMap<Lane, Shards>>>,
    /// False once the broker has refused a declaration.
    pub(crate) may_declare: Arc<AtomicBool>,
    /// True while a logged outage of the journal lasts.
    pub(crate) journal_outage_logged: Arc<AtomicBool>,
    pub(crate) degradations: Degradations,
}

impl CurrentConnection {
    /// Returns the current generation, or waits for the next.
    ///
    /// # Errors
    /// There will be no further generation.
    pub(crate) async fn generation(&self) -> Result<Arc<Generation>, TransportError> {
        let mut generations = self.generations.clone();
        let next = async move {
            let is_up = |generation: &Option<Arc<Generation>>| {
                generation.as_ref().is_some_and(|generation| !generation.end.is_terminated())
            };
            generations.wait_for(is_up).await.ok().and_then(|found| found.clone())
        };
        tokio::select! {
            biased;
            () = self.end.wait() => Err(self.end.error()),
            generation = next => generation.ok_or_else(|| self.end.error()),
        }
    }

    pub(crate) fn health(&self) -> &watch::Sender<Health> {
        &self.health
    }

    /// True if a queue belongs to an opened lane, or is the journal's.
    pub(crate) fn expects_queue(&self, queue: &str) -> bool {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        queue == JOURNAL_QUEUE && !lanes.is_empty()
            || lanes.iter().any(|(lane, shards)| {
                QueueRole::ALL
                    .into_iter()
                    .chain(shards.queues())
                    .any(|role| role.of(lane).to_string() == queue)
            })
    }

    /// Records an opened lane with at least `shards` shards, for [`Self::redeclare_lanes`].
    pub(crate) fn remember_lane(&self, lane: &Lane, shards: Shards) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lanes.entry(lane.clone()).or_default();
        *kept = shards.max(*kept);
    }

    /// Declares the opened lanes, where they are missing. The journal is separate, see
    /// [`Self::wait_for_journal`].
    pub(crate) async fn redeclare_lanes(&self, generation: &Generation) -> Result<(), TransportError> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (lane, shards) in lanes {
            self.declare_lane(generation, &lane).await?;
            if shards > Shards::ONE {
                self.open_shards(generation, &lane, shards).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn open_shards(
        &self,
        generation: &Generation,
        lane: &Lane,
        at_least: Shards,
    ) -> Result<Shards, TransportError> {
        let mut session = DeclareSession::open(generation, &self.config, &self.may_declare).await?;
        let there = topology::open_shards(&mut session, lane, at_least).await;
        session.close().await;
        there
    }

    pub(crate) async fn declare_lane(
        &self,
        generation: &Generation,
        lane: &Lane,
    ) -> Result<(), TransportError> {
        let mut session = DeclareSession::open(generation, &self.config, &self.may_declare).await?;
        let opened = topology::open_lane(&mut session, lane).await;
        session.close().await;
        opened
    }
}
