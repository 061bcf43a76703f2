//! The connection that comes back: whichever generation there is, or the next.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use gristmill_shared::{Health, Lane, QueueRole, Shards, TransportError};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::TaskTracker;

use crate::{
    config::AmqpConfig,
    connection::termination::End,
    connection::generation::Generation,
    connection::degraded::Interruptions,
    connection::runtime::OwnRuntime,
    connection::supervisor::Supervisor,
    topology::{self, JOURNAL},
    topology::declare_connection::Visit,
};

/// A thread that sees to the generations, and outlives each of them.
const THREADS: usize = 1;
/// How long the last generation may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What everything that came from a transport hangs on. With the last of it, the connections close.
#[derive(Debug)]
pub(crate) struct Link {
    line: Line,
    tasks: TaskTracker,
    runtime: OwnRuntime,
}

/// The way to the generations. It keeps none of them up.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) config: Arc<AmqpConfig>,
    /// The end for good.
    pub(crate) end: End,
    generations: watch::Receiver<Option<Arc<Generation>>>,
    health: watch::Sender<Health>,
    /// Those that were opened, with as many shards as were seen, and are declared again on a broker that may have
    /// forgotten them.
    lanes: Arc<Mutex<BTreeMap<Lane, Shards>>>,
    /// Whether we may declare, as far as we know.
    pub(crate) declares: Arc<AtomicBool>,
    /// Whether it was told that the journal is not there.
    pub(crate) journal_missed: Arc<AtomicBool>,
    pub(crate) interruptions: Interruptions,
}

impl Link {
    pub(crate) fn start(config: AmqpConfig, first: Generation) -> std::io::Result<Self> {
        let health = watch::Sender::new(Health::Well);
        let runtime = OwnRuntime::start(THREADS)?;
        let end = End::new(&config.to_string());
        let (current, generations) = watch::channel(Some(Arc::new(first)));
        let line = Line {
            config: Arc::new(config),
            end,
            generations,
            health,
            lanes: Arc::default(),
            declares: Arc::new(AtomicBool::new(true)),
            journal_missed: Arc::default(),
            interruptions: Interruptions::default(),
        };
        let link = Self { line: line.clone(), tasks: TaskTracker::new(), runtime };
        link.spawn(Supervisor::new(line, current).run());
        Ok(link)
    }

    /// Runs a task beside the generations. It must end when the link does, and must not own it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.runtime.handle());
    }

    /// Ends it for good: what was settled is handed on, then the connections close.
    pub(crate) async fn close(&self) {
        self.end.because("it was closed at this end");
        wait_for(&self.tasks).await;
    }
}

async fn wait_for(tasks: &TaskTracker) {
    tasks.close();
    if timeout(CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::debug!("the connections did not close in time");
    }
}

impl Deref for Link {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end.because("it was dropped at this end");
        let tasks = self.tasks.clone();
        self.runtime.end_after(async move { wait_for(&tasks).await });
    }
}

impl Line {
    /// The generation that there is, or else the next.
    ///
    /// # Errors
    /// If there will be none.
    pub(crate) async fn generation(&self) -> Result<Arc<Generation>, TransportError> {
        let mut generations = self.generations.clone();
        let next = async move {
            let is_up = |generation: &Option<Arc<Generation>>| {
                generation.as_ref().is_some_and(|generation| !generation.end.is_over())
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

    /// Whether a queue belongs to a lane that was opened, or is the journal's.
    pub(crate) fn should_exist(&self, queue: &str) -> bool {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        queue == JOURNAL && !lanes.is_empty()
            || lanes.iter().any(|(lane, shards)| {
                QueueRole::ALL
                    .into_iter()
                    .chain(shards.queues())
                    .any(|role| role.of(lane).to_string() == queue)
            })
    }

    /// The lane was opened, and is to stay, with so many shards at least.
    pub(crate) fn keep(&self, lane: &Lane, shards: Shards) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lanes.entry(lane.clone()).or_default();
        *kept = shards.max(*kept);
    }

    /// Declares the lanes that were opened, where they are missing. Not the journal, see [`crate::ready`].
    pub(crate) async fn declare(&self, generation: &Generation) -> Result<(), TransportError> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (lane, shards) in lanes {
            self.declare_one(generation, &lane).await?;
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
        let mut visit = Visit::begin(generation, &self.config, &self.declares).await?;
        let there = topology::open_shards(&mut visit, lane, at_least).await;
        visit.end().await;
        there
    }

    pub(crate) async fn declare_one(
        &self,
        generation: &Generation,
        lane: &Lane,
    ) -> Result<(), TransportError> {
        let mut visit = Visit::begin(generation, &self.config, &self.declares).await?;
        let opened = topology::open_lane(&mut visit, lane).await;
        visit.end().await;
        opened
    }
}
