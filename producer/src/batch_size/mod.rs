//! How many tasks the next batch gets: about as many as keep one slot busy for a moment, by what tasks were measured to
//! take. A message costs about 100 µs end to end, so tiny tasks must share one; long ones must not.

mod subscription;

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, WorkerId,
    wire::{BATCH_MAX_TASKS, Event, Progress, WorkerBeat},
};

pub(crate) use self::subscription::Measured;

/// A batch is about so much work for one slot: half of what a worker calls long, so that a machine that has become slower
/// changes nothing, and a hundred times what it costs everybody together when it comes alone.
const TARGET: Duration = Duration::from_millis(100);
/// Towards the end batches shrink, but not below so much work, of which the message is a tenth when it comes alone.
const WORTH_A_MESSAGE: Duration = Duration::from_millis(10);
/// From one batch to the next, and over the number of tasks measured so far, a batch has at most so many times as many
/// tasks. So a first measurement that was too good to be true costs no more than what was seen bears out: a lucky task
/// never makes a batch of thousands of long ones.
const GROWTH: u32 = 2;
/// While sizes grow with what is measured, no more tasks than so many, or than [`AHEAD`] times those that have outcomes, are sent
/// ahead of the outcomes: work for dozens of slots. Else a fast producer would send hundreds of tiny batches before it hears
/// of the first.
const AHEAD_MIN: u64 = 64;
const AHEAD: u64 = 2;
/// A full batch of async tasks has at least this many times as many tasks as a slot keeps in
/// flight, so that a slot seldom waits for the last ones of a batch with nothing else in flight.
const IN_FLIGHT_ROUNDS: u64 = 4;
/// The first outcomes come from a machine that is busy with the start of the job, and tell of tasks half as long again as
/// those that follow. So for this long after the first of them, a job that knows its number sends no more ahead than it keeps for
/// a better measurement: half of what is left. No slot waits for that.
const YOUNG: Duration = Duration::from_secs(1);
/// News is waited for so long at most, which is longer than a sink takes from one to the next, and then not again before there is
/// some: perhaps nobody works, or tasks take long.
const NEWS_WAIT: Duration = Duration::from_millis(400);
/// Towards the end a batch has at most one in so many of what is left for each slot, so that all slots end together.
const SHARES_PER_SLOT: u64 = 2;
/// At least so many slots are assumed, since workers are heard only some time after the listening began. Too many cost a few
/// dozen messages, too few a long tail.
const SLOTS_MIN: u64 = 8;
/// A worker that was not heard for so long, three beats, has left.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// How many workers are counted; a fleet of more has slots enough for the smallest batches at the end anyway.
const WORKERS_MAX: usize = 10_000;
/// What a measurement weighs when the next one comes.
const FADING: f64 = 0.5;

/// Decides how many tasks each batch gets. Shared by the thread that splits, which asks, and by whoever hears the events.
#[derive(Debug)]
pub(crate) enum Sizing {
    /// Always so many.
    Fixed(u32),
    /// As many as suits what was measured.
    Measured {
        /// What was measured.
        measure: Mutex<Measure>,
        /// Told when there is a measurement.
        news: Condvar,
        /// For how long it is waited for.
        wait: Duration,
    },
}

impl Sizing {
    /// `in_flight` is how many tasks a slot keeps in flight, of jobs whose tasks are async.
    pub(crate) fn new(batch: Option<u32>, in_flight: u32) -> Self {
        match batch {
            Some(tasks) => Self::Fixed(tasks.clamp(1, BATCH_MAX_TASKS)),
            None => Self::waiting(NEWS_WAIT, in_flight),
        }
    }

    fn waiting(wait: Duration, in_flight: u32) -> Self {
        let measure = Mutex::new(Measure { in_flight: in_flight.into(), ..Measure::default() });
        Self::Measured { measure, news: Condvar::new(), wait }
    }

    /// How many tasks the next batch gets, of the `left` that the job has left, if that is known. Blocks for
    /// [`NEWS_WAIT`] at most.
    pub(crate) fn next(&self, left: Option<u64>) -> u32 {
        match self {
            Self::Fixed(tasks) => *tasks,
            Self::Measured { measure, news, wait } => {
                let mut measure = lock(measure);
                let mut size = measure.next(left, Instant::now());
                if measure.waits_for_news(size, left, Instant::now()) {
                    let heard = measure.heard;
                    let waited = news.wait_timeout_while(measure, *wait, |measure| measure.heard == heard);
                    (measure, _) = waited.unwrap_or_else(PoisonError::into_inner);
                    measure.in_vain = measure.heard == heard;
                    size = measure.next(left, Instant::now());
                }
                measure.size = size.tasks;
                size.tasks
            }
        }
    }

    /// A batch has got so many: fewer than it might, if they are large or the last.
    pub(crate) fn got(&self, tasks: u32) {
        if let Self::Measured { measure, .. } = self {
            let mut measure = lock(measure);
            measure.sent = measure.sent.saturating_add(tasks.into());
        }
    }

    /// Takes note of an event of the job's lane.
    pub(crate) fn hear(&self, job: JobId, event: &Event) {
        let Self::Measured { measure, news, .. } = self else { return };
        match event {
            Event::Progress(Progress { job: of, account, busy_us, .. }) if *of == job => {
                lock(measure).progress(account.done.saturating_add(account.failed), *busy_us, Instant::now());
                news.notify_all();
            }
            Event::Worker(WorkerBeat { worker, slots, .. }) => {
                lock(measure).beat(worker, *slots, Instant::now());
            }
            Event::Progress(_) | Event::Missing(_) | Event::Finished(_) => {}
        }
    }
}

/// Nothing under the lock panics between two statements that belong together.
fn lock(measure: &Mutex<Measure>) -> MutexGuard<'_, Measure> {
    measure.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of a job's tasks, and of who runs them.
#[derive(Debug, Default)]
pub(crate) struct Measure {
    /// The number of tasks that a slot keeps in flight: 0 or 1 unless they are async.
    in_flight: u64,
    /// How many tasks all batches have got.
    sent: u64,
    /// How many the last one might get.
    size: u32,
    /// How often outcomes were told of, and whether the next time was awaited in vain.
    heard: u64,
    in_vain: bool,
    /// How many outcomes the last progress told of, and how long they took in all.
    outcomes: u64,
    busy_us: u64,
    /// Until when the job is [`YOUNG`]; not known before its first outcome.
    young_until: Option<Instant>,
    /// What was measured lately; each measurement makes the earlier ones fade.
    recent: Span,
    /// What was measured last.
    latest: Span,
    /// How many slots each worker has, and when it was heard.
    workers: BTreeMap<WorkerId, (u32, Instant)>,
}

/// What a batch gets.
#[derive(Debug, Clone, Copy)]
struct Size {
    tasks: u32,
    /// It would be more if more had been measured.
    grows: bool,
    /// It may be another when more has been measured: neither one nor as many as a message may have.
    varies: bool,
}

/// So many tasks took so long.
#[derive(Debug, Default, Clone, Copy)]
struct Span {
    tasks: f64,
    micros: f64,
}

impl Span {
    fn mean(self) -> f64 {
        self.micros / self.tasks
    }
}

impl Measure {
    /// The job has so many outcomes by now, which took so long. The first time, all of them are news: they are what the ledger
    /// knows of a job that is resumed.
    fn progress(&mut self, outcomes: u64, busy_us: u64, now: Instant) {
        let (tasks, micros) = (outcomes.saturating_sub(self.outcomes), busy_us.saturating_sub(self.busy_us));
        (self.outcomes, self.busy_us) = (outcomes, busy_us);
        if tasks == 0 {
            return; // or fewer, since failed ones were sent again
        }
        (self.heard, self.in_vain) = (self.heard + 1, false);
        self.young_until.get_or_insert(now + YOUNG);
        self.latest = Span { tasks: tasks as f64, micros: micros as f64 };
        self.recent.tasks = self.recent.tasks * FADING + self.latest.tasks;
        self.recent.micros = self.recent.micros * FADING + self.latest.micros;
    }

    fn beat(&mut self, worker: &WorkerId, slots: u32, now: Instant) {
        self.workers.retain(|_, (_, heard)| now.saturating_duration_since(*heard) < SILENCE_MAX);
        if self.workers.len() < WORKERS_MAX || self.workers.contains_key(worker) {
            self.workers.insert(worker.clone(), (slots, now));
        }
    }

    fn next(&self, left: Option<u64>, now: Instant) -> Size {
        let least = self.in_flight.clamp(1, BATCH_MAX_TASKS.into());
        // Tasks that wait beside one another take a slot no longer than one of them.
        let full = if least > 1 { least * IN_FLIGHT_ROUNDS } else { 1 };
        let share = left.map_or(u64::MAX, |left| left / (SHARES_PER_SLOT * self.slots(now)));
        let unmeasured = full.min(share).max(least);
        let (mut wanted, mut borne_out) = (u64::MAX, unmeasured);
        if self.outcomes > 0 && self.recent.tasks > 0.0 {
            // The longer of the two: tasks that turn out longer count at once, shorter ones when they are the rule.
            let mean = self.recent.mean().max(self.latest.mean());
            let tasks_in = |time: Duration| (time.as_micros() as f64 / mean) as u64; // as many as there are, if they take no time
            wanted = tasks_in(TARGET).max(full).min(share.max(tasks_in(WORTH_A_MESSAGE)));
            borne_out = u64::from(self.size).min(self.outcomes).saturating_mul(GROWTH.into()).max(unmeasured);
        }
        let wanted = wanted.clamp(least, BATCH_MAX_TASKS.into());
        let tasks = u32::try_from(wanted.min(borne_out)).unwrap_or(BATCH_MAX_TASKS).max(1);
        let varies = wanted > least && wanted < BATCH_MAX_TASKS.into();
        Size { tasks, grows: u64::from(tasks) < wanted, varies }
    }

    /// Whether it is time to hear how long the tasks take that were sent, before a batch of that size follows.
    fn waits_for_news(&self, Size { grows, varies, .. }: Size, left: Option<u64>, now: Instant) -> bool {
        let is_young = self.young_until.is_some_and(|until| now < until);
        let kept_back = left.filter(|_| varies && is_young).map(|left| left / 2);
        let may_be_ahead = match (grows, kept_back) {
            (true, _) => 0,
            (false, Some(kept_back)) => kept_back,
            (false, None) => return false,
        };
        let may_be_ahead =
            may_be_ahead.max(AHEAD_MIN * self.in_flight.max(1)).max(self.outcomes.saturating_mul(AHEAD));
        !self.in_vain && self.sent.saturating_sub(self.outcomes) >= may_be_ahead
    }

    fn slots(&self, now: Instant) -> u64 {
        let heard = self.workers.values();
        let heard = heard.filter(|(_, heard)| now.saturating_duration_since(*heard) < SILENCE_MAX);
        heard.map(|(slots, _)| u64::from(*slots)).sum::<u64>().max(SLOTS_MIN)
    }
}

#[cfg(test)]
mod tests;
