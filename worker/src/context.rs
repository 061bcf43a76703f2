//! The state that all parts of a worker share.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use gristmill_shared::{
    Address, BuildId, Headers, Health, JobId, JobTracker, Lane, LogLimiter, LogRule, Message, Outgoing,
    QueueRole, Registry, StopSignal, Transport, WorkerId,
    metrics::{WORKER_HANDED_BACK, WORKER_SLOTS_BUSY, WORKER_THREADS_STUCK},
};

use gristmill_shared::wire::{Batch, clip_reason, now_ms};
use tokio::sync::watch;

use crate::{
    consumer::prefetch::PrefetchController,
    executor::JobCache,
    isolate::Isolation,
    release::{Release, ReleaseTracker, Unfit, release},
};

/// Jobs left to other workers that are remembered as reported; beyond it one may be reported again.
const REPORTED_MAX_JOBS: usize = 10_000;

/// Jobs whose failed tries are counted; beyond it the count of the oldest restarts.
const COUNTED_MAX_JOBS: usize = 64;

/// Bytes of a body that go to the dead queue at most: more than any batch of ours has, and less
/// than any broker refuses.
const DEAD_MAX_BYTES: usize = 8 << 20;

/// The shared state of a worker.
#[derive(Debug)]
pub(crate) struct WorkerContext {
    pub(crate) registry: Registry,
    pub(crate) tracker: Arc<JobTracker>,
    pub(crate) jobs: JobCache,
    /// The failed tries of each job.
    failure_log: Mutex<LogLimiter<JobId>>,
    pub(crate) lane: Lane,
    pub(crate) transport: Arc<dyn Transport>,
    connection: Mutex<ConnectionHistory>,
    pub(crate) prefetch: PrefetchController,
    pub(crate) id: WorkerId,
    /// The build of this program, if it is known.
    pub(crate) build: Option<BuildId>,
    pub(crate) releases: ReleaseTracker,
    /// Given when the worker leaves: slots end before their next task.
    pub(crate) halt: StopSignal,
    pub(crate) counts: WorkerCounters,
    pub(crate) message_seq: AtomicU64,
    /// The jobs left to other workers.
    release_log: Mutex<LogLimiter<JobId>>,
    /// The child processes in which batches run; none if they run in this process.
    pub(crate) isolation: Option<Isolation>,
}

/// The connection state of this process as last observed.
#[derive(Debug)]
struct ConnectionHistory {
    health: watch::Receiver<Health>,
    /// The last observed state.
    seen: Health,
    changed_at: Option<Instant>,
}

/// Counters since the start of the worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    pub(crate) batches: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) handed_back: AtomicU64,
    pub(crate) busy: AtomicU32,
    /// Threads that hold a task after they lost their slot.
    pub(crate) stuck: AtomicU32,
    /// Slots whose task did not end within the grace.
    pub(crate) abandoned: AtomicU32,
}

impl WorkerCounters {
    /// Counts a slot that has begun a batch.
    pub(crate) fn batch_started(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        WORKER_SLOTS_BUSY.inc([]);
    }

    /// Counts a slot that has finished its batch.
    pub(crate) fn batch_finished(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
        WORKER_SLOTS_BUSY.dec([]);
    }

    /// Counts a thread that lost its slot while it holds a task.
    pub(crate) fn thread_stuck(&self) {
        self.stuck.fetch_add(1, Ordering::Relaxed);
        WORKER_THREADS_STUCK.inc([]);
    }

    /// Counts the end of such a thread.
    pub(crate) fn thread_recovered(&self) {
        self.stuck.fetch_sub(1, Ordering::Relaxed);
        WORKER_THREADS_STUCK.dec([]);
    }
}

impl ConnectionHistory {
    fn new(mut health: watch::Receiver<Health>) -> Self {
        let seen = health.borrow_and_update().clone();
        Self { health, seen, changed_at: None }
    }

    /// Returns the time when the connection was last lost or regained.
    fn last_change(&mut self) -> Option<Instant> {
        if self.health.has_changed().unwrap_or_default() {
            let now = self.health.borrow_and_update().clone();
            let before = std::mem::replace(&mut self.seen, now);
            // A broker that begins or ceases to block publishers keeps the connection; so does one
            // that does not deliver from some queue. Changes between two equal states were not
            // observed, so they may have been anything.
            let connected = |health: &Health| !matches!(health, Health::Reconnecting(_) | Health::Closed);
            let is_well = |health: &Health| *health == Health::Ready;
            let is_one_connection = connected(&before) && connected(&self.seen);
            if !is_one_connection || is_well(&before) == is_well(&self.seen) {
                self.changed_at = Some(Instant::now());
            }
        }
        self.changed_at
    }
}

impl WorkerContext {
    pub(crate) fn new(
        registry: Registry,
        tracker: Arc<JobTracker>,
        transport: Arc<dyn Transport>,
        lane: Lane,
        id: WorkerId,
        build: Option<BuildId>,
    ) -> Self {
        Self {
            registry,
            tracker,
            jobs: JobCache::default(),
            failure_log: Mutex::new(LogLimiter::new(LogRule::PowersOfTwo, COUNTED_MAX_JOBS)),
            lane,
            connection: Mutex::new(ConnectionHistory::new(transport.health())),
            transport,
            prefetch: PrefetchController::new(),
            id,
            build,
            releases: ReleaseTracker::default(),
            halt: StopSignal::new(),
            counts: WorkerCounters::default(),
            message_seq: AtomicU64::new(0),
            release_log: Mutex::new(LogLimiter::new(LogRule::Once, REPORTED_MAX_JOBS)),
            isolation: None,
        }
    }

    /// Returns the address of the lane's queue for this role.
    pub(crate) fn address(&self, role: QueueRole) -> Address {
        Address::Queue(role.of(&self.lane))
    }

    /// Returns a number that no other message of this worker has.
    pub(crate) fn next_message_seq(&self) -> u64 {
        self.message_seq.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the time when this process was last seen to lose or regain the broker. The first
    /// connection does not count.
    pub(crate) fn connection_changed_at(&self) -> Option<Instant> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).last_change()
    }

    /// Observes each change of the connection state, so that none is noticed late. Returns when the
    /// transport is gone.
    pub(crate) async fn watch_connection(&self) {
        let mut health = self.transport.health();
        while health.changed().await.is_ok() {
            let _ = self.connection_changed_at();
        }
    }

    /// Makes the message that returns an unstarted batch to the queue, at no cost to its tasks. A
    /// suspect stays among the suspects.
    pub(crate) fn requeue(&self, message: Message, from: QueueRole) -> Outgoing {
        self.counts.handed_back.fetch_add(1, Ordering::Relaxed);
        WORKER_HANDED_BACK.add([], 1);
        let to = if from == QueueRole::Suspect { QueueRole::Suspect } else { QueueRole::Requeued };
        Outgoing { to: self.address(to), message }
    }

    /// Makes the message for the dead queue, which the sink reads.
    pub(crate) fn dead_letter(&self, mut message: Message, origin: QueueRole, reason: &str) -> Outgoing {
        let origin = origin.of(&self.lane).to_string();
        let mut reason = clip_reason(reason).into_owned();
        if message.body.len() > DEAD_MAX_BYTES {
            reason = format!("{reason} (its body of {} bytes is cut)", message.body.len());
            message.body.truncate(DEAD_MAX_BYTES);
        }
        tracing::warn!(id = message.id, queue = origin, reason, "moving a message to the dead queue");
        message.headers.reason = Some(reason);
        message.headers.origin = Some(origin);
        Outgoing { to: self.address(QueueRole::Dead), message }
    }

    /// Returns true if this build submitted the batch's job, as far as that is known. A batch of
    /// this build that does not decode is itself malformed.
    pub(crate) fn is_own_build(&self, batch: &Batch<'_>) -> bool {
        batch.build.is_none() || batch.build == self.build
    }

    /// Counts a failed try of this job. Returns the count if this try is to be logged as a warning.
    pub(crate) fn count_failure(&self, job: JobId) -> Option<u64> {
        self.failure_log.lock().unwrap_or_else(PoisonError::into_inner).count(job)
    }

    /// Decides on a batch that is unfit for this worker, and logs the reason once for each job.
    pub(crate) fn release(
        &self,
        batch: &Batch<'_>,
        headers: &Headers,
        from: QueueRole,
        unfit: &Unfit,
    ) -> Release {
        let release = release(unfit, from, headers, &self.id, now_ms());
        if let Release::Requeue(..) = release
            && self.release_log.lock().unwrap_or_else(PoisonError::into_inner).should_log(batch.job)
        {
            tracing::warn!(job = %batch.job, worker = %self.id, "{}", unfit.text(&batch.kind));
        }
        release
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::memory::MemoryTransport;

    use super::*;

    impl WorkerContext {
        /// A context without jobs, on its own broker.
        pub(crate) async fn for_test() -> Arc<Self> {
            let transport = MemoryTransport::new();
            let (tracker, _) = JobTracker::open(&*transport).await.unwrap();
            let id = "test-worker".parse().unwrap();
            Arc::new(Self::new(Registry::default(), tracker, transport, Lane::default(), id, None))
        }
    }

    /// Only a lost connection counts, not a broker that blocks publishers.
    #[test]
    fn blocked_broker_keeps_connection() {
        let (broker, health) = watch::channel(Health::Ready);
        let mut connection = ConnectionHistory::new(health);
        assert_eq!(connection.last_change(), None, "the first connection");
        let interrupted = Health::Degraded("no queue".into());
        for health in [Health::Blocked("low on memory".into()), Health::Ready, interrupted, Health::Ready] {
            broker.send_replace(health);
            assert_eq!(connection.last_change(), None, "{:?}", connection.seen);
        }
        broker.send_replace(Health::Reconnecting("gone".into()));
        let lost = connection.last_change();
        assert!(lost.is_some());
        broker.send_replace(Health::Ready);
        assert!(connection.last_change() > lost, "it was found again later");
        let found = connection.last_change();
        assert_eq!(connection.last_change(), found);
        for health in [Health::Reconnecting("gone".into()), Health::Ready] {
            broker.send_replace(health);
        }
        assert!(connection.last_change() > found, "it was lost between two looks");
    }
}
