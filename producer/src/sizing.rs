//! How many tasks the next batch gets: about as many as keep one slot busy for a moment, by what tasks were measured to
//! take. A message costs about 100 µs end to end, so tiny tasks must share one; long ones must not.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, WorkerId,
    wire::{BATCH_MAX_TASKS, Event, Progress, WorkerBeat},
};

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
    pub(crate) fn new(batch: Option<u32>) -> Self {
        match batch {
            Some(tasks) => Self::Fixed(tasks.clamp(1, BATCH_MAX_TASKS)),
            None => Self::waiting(NEWS_WAIT),
        }
    }

    fn waiting(wait: Duration) -> Self {
        Self::Measured { measure: Mutex::default(), news: Condvar::new(), wait }
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
        let (mut wanted, mut borne_out) = (u64::MAX, 1);
        if self.outcomes > 0 && self.recent.tasks > 0.0 {
            // The longer of the two: tasks that turn out longer count at once, shorter ones when they are the rule.
            let mean = self.recent.mean().max(self.latest.mean());
            let tasks_in = |time: Duration| (time.as_micros() as f64 / mean) as u64; // as many as there are, if they take no time
            wanted = tasks_in(TARGET);
            if let Some(left) = left {
                let share = left / (SHARES_PER_SLOT * self.slots(now));
                wanted = wanted.min(share.max(tasks_in(WORTH_A_MESSAGE)));
            }
            borne_out = u64::from(self.size).min(self.outcomes).saturating_mul(GROWTH.into());
        }
        let wanted = wanted.clamp(1, BATCH_MAX_TASKS.into());
        let tasks = u32::try_from(wanted.min(borne_out)).unwrap_or(BATCH_MAX_TASKS).max(1);
        let varies = wanted > 1 && wanted < BATCH_MAX_TASKS.into();
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
        let may_be_ahead = may_be_ahead.max(AHEAD_MIN).max(self.outcomes.saturating_mul(AHEAD));
        !self.in_vain && self.sent.saturating_sub(self.outcomes) >= may_be_ahead
    }

    fn slots(&self, now: Instant) -> u64 {
        let heard = self.workers.values();
        let heard = heard.filter(|(_, heard)| now.saturating_duration_since(*heard) < SILENCE_MAX);
        heard.map(|(slots, _)| u64::from(*slots)).sum::<u64>().max(SLOTS_MIN)
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::Account;

    use super::*;

    const MAX: u64 = BATCH_MAX_TASKS as u64;

    /// A fleet that runs what it is sent at once, and tells of it after every so many batches.
    struct Fleet {
        measure: Measure,
        now: Instant,
        outcomes: u64,
        busy: Duration,
    }

    impl Fleet {
        fn new() -> Self {
            Self { measure: Measure::default(), now: Instant::now(), outcomes: 0, busy: Duration::ZERO }
        }

        /// The sizes of the next batches, of tasks that take so long each. Progress is told after every fourth.
        fn run(&mut self, batches: usize, task: Duration) -> Vec<u64> {
            let one = |number: usize| {
                let size = u64::from(self.measure.size(None, self.now));
                self.outcomes += size;
                self.busy += task * u32::try_from(size).unwrap();
                if number % 4 == 3 {
                    self.measure.progress(
                        self.outcomes,
                        u64::try_from(self.busy.as_micros()).unwrap(),
                        self.now,
                    );
                }
                size
            };
            (0..batches).map(one).collect()
        }
    }

    impl Measure {
        fn size(&mut self, left: Option<u64>, now: Instant) -> u32 {
            self.size = self.next(left, now).tasks;
            self.size
        }
    }

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_batch_grows_to_what_is_wanted_by_doubling() {
        for (task, expected) in [(0, MAX), (3, MAX), (10, MAX), (1_000, 100), (30_000, 3), (60_000, 1)] {
            let sizes = Fleet::new().run(100, micros(task));
            assert_eq!(sizes.last(), Some(&expected), "{task} us: {sizes:?}");
            assert_eq!(sizes[..4], [1; 4], "nothing was measured before");
            assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] * 2), "{task} us: {sizes:?}");
            assert!(sizes.iter().position(|size| *size == expected) <= Some(24), "{task} us: {sizes:?}");
        }
        let sizes = Fleet::new().run(100, Duration::from_secs(1));
        assert_eq!(sizes, [1; 100], "long tasks never share a batch");
    }

    #[test]
    fn a_batch_is_never_larger_than_twice_what_was_measured() {
        let mut fleet = Fleet::new();
        fleet.run(4, micros(1)); // four lucky tasks
        assert_eq!(fleet.measure.outcomes, 4);
        let sizes: Vec<_> = (0..6).map(|_| fleet.measure.size(None, fleet.now)).collect();
        assert_eq!(sizes, [2, 4, 8, 8, 8, 8]);
    }

    #[test]
    fn with_no_worker_up_nothing_grows() {
        let mut measure = Measure::default();
        let now = Instant::now();
        measure.progress(0, 0, now); // the sink has opened the job
        assert!((0..1_000).all(|_| measure.size(Some(1_000_000), now) == 1));
    }

    #[test]
    fn longer_tasks_shrink_the_next_batch_and_shorter_ones_let_it_grow_again() {
        let mut fleet = Fleet::new();
        assert_eq!(fleet.run(60, micros(1)).last(), Some(&MAX));
        // One of the batches that are under way already tells: its first task took a second.
        let busy = u64::try_from(fleet.busy.as_micros()).unwrap();
        fleet.measure.progress(fleet.outcomes + 1, busy + 1_000_000, fleet.now);
        assert_eq!(fleet.measure.size(None, fleet.now), 1);
        (fleet.outcomes, fleet.busy) = (fleet.outcomes + 1, fleet.busy + micros(1_000_000));
        assert!(fleet.run(20, Duration::from_secs(1))[4..].iter().all(|size| *size == 1));
        let sizes = fleet.run(60, micros(1));
        assert_eq!(sizes.last(), Some(&MAX), "{sizes:?}");
        assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] * 2), "{sizes:?}");
    }

    #[test]
    fn what_the_ledger_knows_of_a_resumed_job_counts_as_measured() {
        let (mut measure, now) = (Measure::default(), Instant::now());
        measure.progress(1_000_000, 1_000_000_000, now); // a millisecond each
        let sizes: Vec<_> = (0..8).map(|_| measure.size(None, now)).collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 100]);
    }

    #[test]
    fn failed_tasks_that_are_sent_again_are_no_measurement() {
        let (mut measure, now) = (Measure::default(), Instant::now());
        measure.progress(100, 100_000, now);
        measure.progress(90, 100_000, now);
        assert_eq!((measure.latest.tasks, measure.outcomes), (100.0, 90));
    }

    /// The sizes of all batches of a job with so many tasks, from when its tasks are known to take so long.
    fn to_the_end(tasks: u64, task: Duration, slots: Option<u32>) -> Vec<u64> {
        let mut fleet = Fleet::new();
        fleet.run(100, task);
        if let Some(slots) = slots {
            fleet.measure.beat(&"mill-1".parse().unwrap(), slots, fleet.now);
        }
        let (mut left, mut sizes) = (tasks, Vec::new());
        while left > 0 {
            let size = u64::from(fleet.measure.size(Some(left), fleet.now)).min(left);
            left -= size;
            sizes.push(size);
        }
        sizes
    }

    #[test]
    fn towards_the_end_batches_shrink_so_that_all_slots_end_together() {
        for slots in [1, 2, 16, 1_000] {
            let sizes = to_the_end(100_000, micros(1_000), Some(slots));
            let mut left = 100_000;
            for size in &sizes {
                let share = left / (2 * u64::from(slots));
                assert!(*size <= share.max(10), "{size} of {left} for {slots} slots");
                left -= size;
            }
            assert!(sizes.last() <= Some(&10), "{slots} slots: {sizes:?}");
        }
        // And no earlier than they must: full batches, and some dozens more, which cost a few milliseconds.
        let sizes = to_the_end(2_000, micros(1_000), Some(2));
        assert!(sizes[..5].iter().all(|size| *size == 100) && sizes.len() < 100, "{} {sizes:?}", sizes.len());
    }

    #[test]
    fn a_batch_at_the_end_is_still_worth_a_message() {
        let sizes = to_the_end(1_000_000, micros(1), Some(64));
        let (_, but_the_last) = sizes.split_last().unwrap();
        assert!(but_the_last.iter().all(|size| *size == MAX), "{sizes:?}");
        let sizes = to_the_end(1_000_000, micros(10), Some(64));
        let (_, but_the_last) = sizes.split_last().unwrap();
        assert!(but_the_last.iter().all(|size| *size >= 1_000), "{sizes:?}");
    }

    /// After so many outcomes, which took a millisecond each.
    fn told(job: JobId, outcomes: u64) -> Event {
        let account = Account { done: outcomes, ..Account::default() };
        Event::Progress(Progress { job, account, sealed: false, busy_us: outcomes * 1_000 })
    }

    #[test]
    fn while_sizes_grow_no_more_is_sent_ahead_than_outcomes_bear_out() {
        let (sizing, job) = (Sizing::waiting(Duration::MAX), JobId::generate());
        let next = || {
            let size = sizing.next(None);
            sizing.got(size);
            size
        };
        let sizes = |batches: usize| -> Vec<_> { (0..batches).map(|_| next()).collect() };
        let after = |outcomes| {
            std::thread::scope(|scope| {
                let next = scope.spawn(next); // waits, unless the news comes first
                sizing.hear(job, &told(job, outcomes));
                next.join().unwrap()
            })
        };
        assert_eq!(sizes(64), [1; 64]);
        assert_eq!(after(2), 2, "65 sent ahead of 0");
        assert_eq!(after(16), 4, "66 sent ahead of 2");
        assert_eq!(sizes(2), [8, 16], "78 ahead of 16");
        assert_eq!(after(64), 32);
        assert_eq!(sizes(3), [64, 100, 100], "which is all that is wanted: nothing is waited for any more");
        assert_eq!(sizes(100), [100; 100]);
    }

    /// Whether a batch waits for news: of those that have an outcome `sent` are sent, of the others `left` are left.
    fn waits(task: Duration, (outcomes, sent, left): (u64, u64, Option<u64>), age: Duration) -> bool {
        let (mut measure, now) = (Measure::default(), Instant::now());
        measure.progress(outcomes, outcomes * u64::try_from(task.as_micros()).unwrap(), now);
        (measure.sent, measure.size) = (sent, BATCH_MAX_TASKS);
        let size = measure.next(left, now + age);
        measure.waits_for_news(size, left, now + age)
    }

    #[test]
    fn a_batch_that_would_be_larger_waits_for_outcomes() {
        // Of a microsecond each there would be 10,000, but for so few outcomes.
        for left in [None, Some(1_000_000)] {
            let waits = |outcomes, sent| waits(micros(1), (outcomes, sent, left), YOUNG);
            assert!(!waits(10, 10 + 63) && waits(10, 10 + 64), "work for dozens of slots");
            assert!(!waits(100, 100 + 199) && waits(100, 100 + 200), "or twice as many as have an outcome");
        }
    }

    #[test]
    fn in_its_first_second_a_job_keeps_half_of_what_is_left_unless_that_changes_no_size() {
        let young = YOUNG / 2;
        let ahead = |ahead: u64, left| (1_000, 1_000 + ahead, left);
        assert!(!waits(micros(1_000), ahead(5_000 - 1, Some(10_000)), young));
        assert!(waits(micros(1_000), ahead(5_000, Some(10_000)), young));
        assert!(!waits(micros(1_000), ahead(2_000 - 1, Some(1_000)), young), "or as much as when sizes grow");
        assert!(!waits(micros(1_000), ahead(5_000, Some(10_000)), YOUNG), "it is no longer young");
        assert!(!waits(micros(1_000), ahead(5_000, None), young), "nobody knows what half of it is");
        assert!(
            !waits(micros(1), (10_000, 60_000, Some(50_000)), young),
            "they are as large as can be anyway"
        );
        assert!(!waits(micros(200_000), ahead(5_000, Some(10_000)), young), "each travels alone anyway");
    }

    #[test]
    fn news_that_does_not_come_is_waited_for_once() {
        let unheard = Sizing::new(None);
        let began = Instant::now();
        let next = |_| {
            unheard.got(1);
            unheard.next(None)
        };
        let sizes: Vec<_> = (0..1_000).map(next).collect();
        assert!(sizes.iter().all(|size| *size == 1), "{sizes:?}");
        assert!((NEWS_WAIT..NEWS_WAIT * 10).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[test]
    fn workers_count_while_they_are_heard() {
        let (mut measure, start) = (Measure::default(), Instant::now());
        assert_eq!(measure.slots(start), SLOTS_MIN);
        for (worker, slots, second) in [("a", 20, 0), ("b", 40, 0), ("b", 40, 2), ("a", 30, 4)] {
            measure.beat(&worker.parse().unwrap(), slots, start + Duration::from_secs(second));
        }
        assert_eq!(measure.slots(start + Duration::from_secs(7)), 70);
        assert_eq!(measure.slots(start + Duration::from_secs(9)), 30);
        assert_eq!(measure.slots(start + Duration::from_secs(10)), SLOTS_MIN);
    }
}
