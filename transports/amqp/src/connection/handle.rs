//! The connection that survives a loss: the current generation, or the next one.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use gristmill_shared::{Health, Lane, QueueRole, Shards, TransportError};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::TaskTracker;

use super::{
    degraded::Degradations, generation::Generation, runtime::DedicatedRuntime, supervisor::Supervisor,
    termination::Termination,
};
use crate::{
    config::AmqpConfig,
    topology::{self, DeclareSession, JOURNAL_QUEUE},
};

/// Threads of the supervisor, which outlives each generation.
const SUPERVISOR_THREADS: usize = 1;
/// Time limit for the last generation to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The owner of the connections, shared by all users of a transport. The connections close when the
/// last owner is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    connection: CurrentConnection,
    tasks: TaskTracker,
    runtime: DedicatedRuntime,
}

/// Access to the current generation. It does not keep the connections open.
#[derive(Clone, Debug)]
pub(crate) struct CurrentConnection {
    pub(crate) config: Arc<AmqpConfig>,
    /// The final termination, after which there is no further generation.
    pub(crate) end: Termination,
    generations: watch::Receiver<Option<Arc<Generation>>>,
    health: watch::Sender<Health>,
    /// Opened lanes, with the largest number of shards seen; declared again after a reconnect,
    /// because the broker may have lost them.
    lanes: Arc<Mutex<BTreeMap<Lane, Shards>>>,
    /// False once the broker has refused a declaration.
    pub(crate) may_declare: Arc<AtomicBool>,
    /// True while a logged outage of the journal lasts.
    pub(crate) journal_outage_logged: Arc<AtomicBool>,
    pub(crate) degradations: Degradations,
}

impl ConnectionHandle {
    pub(crate) fn start(config: AmqpConfig, first: Generation) -> std::io::Result<Self> {
        let health = watch::Sender::new(Health::Ready);
        let runtime = DedicatedRuntime::start(SUPERVISOR_THREADS)?;
        let end = Termination::new(&config.to_string());
        let (current, generations) = watch::channel(Some(Arc::new(first)));
        let connection = CurrentConnection {
            config: Arc::new(config),
            end,
            generations,
            health,
            lanes: Arc::default(),
            may_declare: Arc::new(AtomicBool::new(true)),
            journal_outage_logged: Arc::default(),
            degradations: Degradations::default(),
        };
        let handle = Self { connection: connection.clone(), tasks: TaskTracker::new(), runtime };
        handle.spawn(Supervisor::new(connection, current).run());
        Ok(handle)
    }

    /// Runs a task beside the generations. It must end when the handle does, and must not own it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.runtime.handle());
    }

    /// Terminates for good: sends the pending acks, then closes the connections.
    pub(crate) async fn close(&self) {
        self.end.terminate("it was closed at this end");
        wait_for_tasks(&self.tasks).await;
    }
}

async fn wait_for_tasks(tasks: &TaskTracker) {
    tasks.close();
    if timeout(CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::debug!("the connections did not close in time");
    }
}

impl Deref for ConnectionHandle {
    type Target = CurrentConnection;

    fn deref(&self) -> &CurrentConnection {
        &self.connection
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.end.terminate("it was dropped at this end");
        let tasks = self.tasks.clone();
        self.runtime.shut_down_after(async move { wait_for_tasks(&tasks).await });
    }
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
