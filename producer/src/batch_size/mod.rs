//! The number of tasks of the next batch: as many as keep one slot busy for [`TARGET_DURATION`], by
//! the measured duration of tasks. A message costs about 100 µs end to end, so tiny tasks must
//! share one; long tasks must not.

mod subscription;

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, WorkerId,
    wire::{BATCH_MAX_TASKS, Event, Progress, WorkerHeartbeat},
};

pub(crate) use self::subscription::SizerSubscription;

/// Work of a batch for one slot. Half of what a worker calls long, so that a machine that becomes
/// slower changes nothing; and a hundred times the cost of a message that travels alone.
const TARGET_DURATION: Duration = Duration::from_millis(100);
/// The least work of a batch that is shortened towards the end of a job. The cost of a message that
/// travels alone is a tenth of it.
const TAIL_MIN_DURATION: Duration = Duration::from_millis(10);
/// The largest factor between a batch and the one before it, and between a batch and the number of
/// tasks measured so far. One unrepresentatively fast sample therefore cannot produce a huge batch.
const GROWTH_MAX: u32 = 2;
/// Tasks that may be sent ahead of the outcomes while sizes grow, or [`LOOKAHEAD_FACTOR`] times the
/// tasks that have outcomes if that is more: work for dozens of slots. Without the limit a fast
/// producer would send hundreds of tiny batches before the first measurement arrives.
const LOOKAHEAD_MIN_TASKS: u64 = 64;
const LOOKAHEAD_FACTOR: u64 = 2;
/// A full batch of async tasks has at least this many times the tasks that a slot keeps in flight.
/// A slot therefore seldom waits for the last tasks of a batch with nothing else in flight.
const IN_FLIGHT_ROUNDS: u64 = 4;
/// The time after the first outcome in which measurements count as provisional. The machine is
/// busy with the start of the job then, and tasks measure half as long again as later. During this
/// time a job that knows its number of tasks keeps half of the remaining tasks back for a better
/// measurement. No slot waits for that.
const WARM_UP: Duration = Duration::from_secs(1);
/// The longest wait for progress. It exceeds the interval between two progress events of a sink. A
/// wait that times out is not repeated before the next progress: no worker may be up, or tasks may
/// take long.
const PROGRESS_WAIT_MAX: Duration = Duration::from_millis(400);
/// The divisor of the remaining tasks, for each slot: towards the end a batch has at most the
/// remaining tasks divided by this times the slots, so that all slots end together.
const SHARES_PER_SLOT: u64 = 2;
/// The least number of slots that is assumed, since heartbeats arrive only some time after the
/// subscription. Too many cost a few dozen messages, too few a long tail.
const SLOTS_MIN: u64 = 8;
/// A worker without a heartbeat for this time, three intervals, has left.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(6);
/// The most workers that are counted. A larger fleet has slots enough for the smallest batches at
/// the end anyway.
const WORKERS_MAX: usize = 10_000;
/// The weight of the earlier measurements when the next one is added.
const SMOOTHING_WEIGHT: f64 = 0.5;

/// Decides how many tasks each batch gets. The thread that splits asks it; the subscription feeds
/// it with events.
#[derive(Debug)]
pub(crate) enum BatchSizer {
    /// A fixed number of tasks.
    Fixed(u32),
    /// A number of tasks that suits the measurements.
    Measured {
        /// The measurements.
        state: Mutex<SizerState>,
        /// Notified at each measurement.
        progressed: Condvar,
        /// The longest wait for a measurement.
        wait: Duration,
    },
}

impl BatchSizer {
    /// Creates a sizer of `batch` tasks, or one that measures. `in_flight` is the number of tasks
    /// that a slot keeps in flight if the job's tasks are async.
    pub(crate) fn new(batch: Option<u32>, in_flight: u32) -> Self {
        match batch {
            Some(tasks) => Self::Fixed(tasks.clamp(1, BATCH_MAX_TASKS)),
            None => Self::measured(PROGRESS_WAIT_MAX, in_flight),
        }
    }

    fn measured(wait: Duration, in_flight: u32) -> Self {
        let state = Mutex::new(SizerState { in_flight: in_flight.into(), ..SizerState::default() });
        Self::Measured { state, progressed: Condvar::new(), wait }
    }

    /// Returns how many tasks the next batch gets. `left` is the number of remaining tasks, if it
    /// is known. Blocks for at most [`PROGRESS_WAIT_MAX`].
    pub(crate) fn next_size(&self, left: Option<u64>) -> u32 {
        match self {
            Self::Fixed(tasks) => *tasks,
            Self::Measured { state, progressed, wait } => {
                let mut state = lock(state);
                let mut size = state.next_size(left, Instant::now());
                if state.should_wait(size, left, Instant::now()) {
                    let progress_seen = state.progress_seen;
                    let waited = progressed
                        .wait_timeout_while(state, *wait, |state| state.progress_seen == progress_seen);
                    (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                    state.wait_timed_out = state.progress_seen == progress_seen;
                    size = state.next_size(left, Instant::now());
                }
                state.size = size.tasks;
                size.tasks
            }
        }
    }

    /// Records the number of tasks of a batch. It is less than the returned size if the tasks are
    /// large or the last ones.
    pub(crate) fn record_sent(&self, tasks: u32) {
        if let Self::Measured { state, .. } = self {
            let mut state = lock(state);
            state.sent = state.sent.saturating_add(tasks.into());
        }
    }

    /// Applies an event of the job's lane.
    pub(crate) fn apply_event(&self, job: JobId, event: &Event) {
        let Self::Measured { state, progressed, .. } = self else { return };
        match event {
            Event::Progress(Progress { job: of, account, busy_us, .. }) if *of == job => {
                lock(state).record_progress(
                    account.done.saturating_add(account.failed),
                    *busy_us,
                    Instant::now(),
                );
                progressed.notify_all();
            }
            Event::Worker(WorkerHeartbeat { worker, slots, .. }) => {
                lock(state).record_heartbeat(worker, *slots, Instant::now());
            }
            Event::Progress(_) | Event::Missing(_) | Event::Finished(_) => {}
        }
    }
}

/// Locks the state. A poisoned lock is usable: nothing under it panics between two statements that
/// belong together.
fn lock(state: &Mutex<SizerState>) -> MutexGuard<'_, SizerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The measurements of a job's tasks, and the workers that are up.
#[derive(Debug, Default)]
pub(crate) struct SizerState {
    /// The number of tasks that a slot keeps in flight: 0 or 1 unless they are async.
    in_flight: u64,
    /// The number of tasks in all batches so far.
    sent: u64,
    /// The size that the last batch was allowed.
    size: u32,
    /// The number of progress events with new outcomes, and true if the last wait for one timed
    /// out.
    progress_seen: u64,
    wait_timed_out: bool,
    /// The number of outcomes in the last progress event, and their duration in all.
    outcomes: u64,
    busy_us: u64,
    /// The end of the [`WARM_UP`], which is unknown before the first outcome.
    warm_up_until: Option<Instant>,
    /// The smoothed measurements.
    recent: TimedTasks,
    /// The last measurement.
    latest: TimedTasks,
    /// The slots of each worker, and the time of its last heartbeat.
    workers: BTreeMap<WorkerId, (u32, Instant)>,
}

/// The size of a batch.
#[derive(Debug, Clone, Copy)]
struct SizeDecision {
    tasks: u32,
    /// True if more measured tasks would allow a larger batch.
    grows: bool,
    /// True if further measurements may change the size: it is neither the least nor the largest.
    varies: bool,
}

/// A number of tasks and the time that they took.
#[derive(Debug, Default, Clone, Copy)]
struct TimedTasks {
    tasks: f64,
    micros: f64,
}

impl TimedTasks {
    fn mean(self) -> f64 {
        self.micros / self.tasks
    }
}

impl SizerState {
    /// Records the number of outcomes and their duration so far. The first event counts in full:
    /// for a resumed job it holds what the ledger knows.
    fn record_progress(&mut self, outcomes: u64, busy_us: u64, now: Instant) {
        let (tasks, micros) = (outcomes.saturating_sub(self.outcomes), busy_us.saturating_sub(self.busy_us));
        (self.outcomes, self.busy_us) = (outcomes, busy_us);
        if tasks == 0 {
            return; // or fewer than before, after a retry of failed tasks
        }
        (self.progress_seen, self.wait_timed_out) = (self.progress_seen + 1, false);
        self.warm_up_until.get_or_insert(now + WARM_UP);
        self.latest = TimedTasks { tasks: tasks as f64, micros: micros as f64 };
        self.recent.tasks = self.recent.tasks * SMOOTHING_WEIGHT + self.latest.tasks;
        self.recent.micros = self.recent.micros * SMOOTHING_WEIGHT + self.latest.micros;
    }

    fn record_heartbeat(&mut self, worker: &WorkerId, slots: u32, now: Instant) {
        self.workers
            .retain(|_, (_, last_seen)| now.saturating_duration_since(*last_seen) < HEARTBEAT_TIMEOUT);
        if self.workers.len() < WORKERS_MAX || self.workers.contains_key(worker) {
            self.workers.insert(worker.clone(), (slots, now));
        }
    }

    fn next_size(&self, left: Option<u64>, now: Instant) -> SizeDecision {
        let least = self.in_flight.clamp(1, BATCH_MAX_TASKS.into());
        // Async tasks that wait side by side take a slot no longer than one of them.
        let full = if least > 1 { least * IN_FLIGHT_ROUNDS } else { 1 };
        let share = left.map_or(u64::MAX, |left| left / (SHARES_PER_SLOT * self.slots(now)));
        let unmeasured = full.min(share).max(least);
        let (mut wanted, mut supported) = (u64::MAX, unmeasured);
        if self.outcomes > 0 && self.recent.tasks > 0.0 {
            // The longer mean: longer tasks count at once, shorter ones when they are the rule.
            let mean = self.recent.mean().max(self.latest.mean());
            // Saturates if the tasks take no time.
            let tasks_in = |time: Duration| (time.as_micros() as f64 / mean) as u64;
            wanted = tasks_in(TARGET_DURATION).max(full).min(share.max(tasks_in(TAIL_MIN_DURATION)));
            supported =
                u64::from(self.size).min(self.outcomes).saturating_mul(GROWTH_MAX.into()).max(unmeasured);
        }
        let wanted = wanted.clamp(least, BATCH_MAX_TASKS.into());
        let tasks = u32::try_from(wanted.min(supported)).unwrap_or(BATCH_MAX_TASKS).max(1);
        let varies = wanted > least && wanted < BATCH_MAX_TASKS.into();
        SizeDecision { tasks, grows: u64::from(tasks) < wanted, varies }
    }

    /// Returns true if the producer should wait for a measurement before it sends a batch of this
    /// size.
    fn should_wait(
        &self,
        SizeDecision { grows, varies, .. }: SizeDecision,
        left: Option<u64>,
        now: Instant,
    ) -> bool {
        let is_warming_up = self.warm_up_until.is_some_and(|until| now < until);
        let kept_back = left.filter(|_| varies && is_warming_up).map(|left| left / 2);
        let may_be_ahead = match (grows, kept_back) {
            (true, _) => 0,
            (false, Some(kept_back)) => kept_back,
            (false, None) => return false,
        };
        let may_be_ahead = may_be_ahead
            .max(LOOKAHEAD_MIN_TASKS * self.in_flight.max(1))
            .max(self.outcomes.saturating_mul(LOOKAHEAD_FACTOR));
        !self.wait_timed_out && self.sent.saturating_sub(self.outcomes) >= may_be_ahead
    }

    fn slots(&self, now: Instant) -> u64 {
        let workers = self.workers.values();
        let present =
            workers.filter(|(_, last_seen)| now.saturating_duration_since(*last_seen) < HEARTBEAT_TIMEOUT);
        present.map(|(slots, _)| u64::from(*slots)).sum::<u64>().max(SLOTS_MIN)
    }
}

#[cfg(test)]
mod tests;
