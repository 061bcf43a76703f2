//! What the slots of a worker share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use gristmill_shared::{
    Address, BuildId, Headers, Health, JobBoard, JobId, Lane, Message, Outgoing, QueueRole, Registry,
    StopSignal, Transport, WorkerId,
    meter::{WORKER_HANDED_BACK, WORKER_SLOTS_BUSY, WORKER_THREADS_STUCK},
};

use gristmill_shared::wire::{Batch, clip_reason, now_ms};
use tokio::sync::watch;

use crate::{
    consumer::Pace,
    executor::JobCache,
    isolate::Isolation,
    log_sampler::Complaints,
    release::{Release, ReleaseTracker, Unfit, release},
};

/// Jobs left to other workers that are remembered as reported; beyond it one may be reported again.
const REPORTED_MAX_JOBS: usize = 10_000;

/// How much of a body goes to the dead queue: more than any batch of ours has, and less than any broker refuses.
const BURIED_MAX_BYTES: usize = 8 << 20;

/// What the slots of a worker share.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) registry: Registry,
    pub(crate) board: Arc<JobBoard>,
    pub(crate) jobs: JobCache,
    pub(crate) complaints: Complaints,
    pub(crate) lane: Lane,
    pub(crate) transport: Arc<dyn Transport>,
    connection: Mutex<Connection>,
    pub(crate) pace: Pace,
    pub(crate) id: WorkerId,
    /// The build of this program, if it is known.
    pub(crate) build: Option<BuildId>,
    pub(crate) releases: ReleaseTracker,
    /// Given when the worker leaves: slots end before their next task.
    pub(crate) halt: StopSignal,
    pub(crate) counts: Counts,
    pub(crate) messages: AtomicU64,
    pub(crate) reported: Mutex<BTreeSet<JobId>>,
    /// The child processes in which batches run, if they do not run here.
    pub(crate) isolation: Option<Isolation>,
}

/// How this process is connected, as far as somebody has looked.
#[derive(Debug)]
struct Connection {
    health: watch::Receiver<Health>,
    /// What was seen last.
    seen: Health,
    lost_at: Option<Instant>,
}

/// What a worker did since it started.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) batches: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) handed_back: AtomicU64,
    pub(crate) busy: AtomicU32,
    /// Threads that were left behind in a task, and are still there.
    pub(crate) stuck: AtomicU32,
    /// Slots whose task did not end within the grace.
    pub(crate) abandoned: AtomicU32,
}

impl Counts {
    /// A slot has a batch.
    pub(crate) fn begins(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        WORKER_SLOTS_BUSY.rise([]);
    }

    /// It has none any more.
    pub(crate) fn ends(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
        WORKER_SLOTS_BUSY.fall([]);
    }

    /// A thread is left behind in a task.
    pub(crate) fn stuck(&self) {
        self.stuck.fetch_add(1, Ordering::Relaxed);
        WORKER_THREADS_STUCK.rise([]);
    }

    /// It has ended after all.
    pub(crate) fn came_free(&self) {
        self.stuck.fetch_sub(1, Ordering::Relaxed);
        WORKER_THREADS_STUCK.fall([]);
    }
}

impl Connection {
    fn new(mut health: watch::Receiver<Health>) -> Self {
        let seen = health.borrow_and_update().clone();
        Self { health, seen, lost_at: None }
    }

    /// When it was last lost, or found again.
    fn look(&mut self) -> Option<Instant> {
        if self.health.has_changed().unwrap_or_default() {
            let now = self.health.borrow_and_update().clone();
            let before = std::mem::replace(&mut self.seen, now);
            // A broker that blocks publishers, or no longer does, has lost nobody; nor has one that does not deliver from some
            // queue. What came between two of the same was not seen, so it may have been anything.
            let connected = |health: &Health| !matches!(health, Health::Away(_) | Health::Closed);
            let is_well = |health: &Health| *health == Health::Well;
            let is_one_connection = connected(&before) && connected(&self.seen);
            if !is_one_connection || is_well(&before) == is_well(&self.seen) {
                self.lost_at = Some(Instant::now());
            }
        }
        self.lost_at
    }
}

impl Shop {
    pub(crate) fn new(
        registry: Registry,
        board: Arc<JobBoard>,
        transport: Arc<dyn Transport>,
        lane: Lane,
        id: WorkerId,
        build: Option<BuildId>,
    ) -> Self {
        Self {
            registry,
            board,
            jobs: JobCache::default(),
            complaints: Complaints::default(),
            lane,
            connection: Mutex::new(Connection::new(transport.health())),
            transport,
            pace: Pace::new(),
            id,
            build,
            releases: ReleaseTracker::default(),
            halt: StopSignal::new(),
            counts: Counts::default(),
            messages: AtomicU64::new(0),
            reported: Mutex::default(),
            isolation: None,
        }
    }

    /// Where tasks that come back later, or that others shall run, are sent.
    pub(crate) fn to(&self, role: QueueRole) -> Address {
        Address::Queue(role.of(&self.lane))
    }

    /// A number that no other message of this worker has.
    pub(crate) fn message_number(&self) -> u64 {
        self.messages.fetch_add(1, Ordering::Relaxed)
    }

    /// When this process was last seen to lose the broker, or to find it again. The first connection does not count.
    pub(crate) fn reconnected_at(&self) -> Option<Instant> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).look()
    }

    /// Looks whenever there is something to see, so that nothing is noticed late. Ends when the transport has gone.
    pub(crate) async fn watch_connection(&self) {
        let mut health = self.transport.health();
        while health.changed().await.is_ok() {
            let _ = self.reconnected_at();
        }
    }

    /// Gives a message that was not begun to whoever takes it next, at no cost. A suspect stays among the suspects.
    pub(crate) fn hand_back(&self, message: Message, from: QueueRole) -> Outgoing {
        self.counts.handed_back.fetch_add(1, Ordering::Relaxed);
        WORKER_HANDED_BACK.add([], 1);
        let to = if from == QueueRole::Suspect { QueueRole::Suspect } else { QueueRole::Again };
        Outgoing { to: self.to(to), message }
    }

    /// Sends a message to the dead queue, where the sink finds it.
    pub(crate) fn bury(&self, mut message: Message, origin: QueueRole, reason: &str) -> Outgoing {
        let origin = origin.of(&self.lane).to_string();
        let mut reason = clip_reason(reason).into_owned();
        if message.body.len() > BURIED_MAX_BYTES {
            reason = format!("{reason} (its body of {} bytes is cut)", message.body.len());
            message.body.truncate(BURIED_MAX_BYTES);
        }
        tracing::warn!(id = message.id, queue = origin, reason, "moving a message to the dead queue");
        message.headers.reason = Some(reason);
        message.headers.origin = Some(origin);
        Outgoing { to: self.to(QueueRole::Dead), message }
    }

    /// Returns whether the batch's job was submitted by this build, as far as that is known. Then
    /// the batch itself is wrong if it does not decode.
    pub(crate) fn is_own_build(&self, batch: &Batch<'_>) -> bool {
        batch.build.is_none() || batch.build == self.build
    }

    /// Decides on a batch that is unfit for this worker, and says why once for each job.
    pub(crate) fn release(
        &self,
        batch: &Batch<'_>,
        headers: &Headers,
        from: QueueRole,
        unfit: &Unfit,
    ) -> Release {
        let release = release(unfit, from, headers, &self.id, now_ms());
        if let Release::To(..) = release {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.insert(batch.job) {
                tracing::warn!(job = %batch.job, worker = %self.id, "{}", unfit.text(&batch.kind));
            }
            while reported.len() > REPORTED_MAX_JOBS {
                reported.pop_first();
            }
        }
        release
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::memory::MemoryTransport;

    use super::*;

    impl Shop {
        /// One that knows no jobs, on a broker of its own.
        pub(crate) async fn of_nothing() -> Arc<Self> {
            let transport = MemoryTransport::new();
            let (board, _) = JobBoard::open(&*transport).await.unwrap();
            let id = "test-worker".parse().unwrap();
            Arc::new(Self::new(Registry::default(), board, transport, Lane::default(), id, None))
        }
    }

    #[test]
    fn a_connection_is_lost_when_it_is_away_and_not_when_the_broker_blocks() {
        let (broker, health) = watch::channel(Health::Well);
        let mut connection = Connection::new(health);
        assert_eq!(connection.look(), None, "the first connection");
        let interrupted = Health::Interrupted("no queue".into());
        for health in [Health::Blocked("low on memory".into()), Health::Well, interrupted, Health::Well] {
            broker.send_replace(health);
            assert_eq!(connection.look(), None, "{:?}", connection.seen);
        }
        broker.send_replace(Health::Away("gone".into()));
        let lost = connection.look();
        assert!(lost.is_some());
        broker.send_replace(Health::Well);
        assert!(connection.look() > lost, "it was found again later");
        let found = connection.look();
        assert_eq!(connection.look(), found);
        for health in [Health::Away("gone".into()), Health::Well] {
            broker.send_replace(health);
        }
        assert!(connection.look() > found, "it was lost between two looks");
    }
}
