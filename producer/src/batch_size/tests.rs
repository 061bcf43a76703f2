use gristmill_shared::Account;

use super::*;

const MAX: u64 = BATCH_MAX_TASKS as u64;

/// A fleet that runs what it is sent at once, and reports after a number of batches.
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

    /// The sizes of the next batches, of tasks that take `task` each. Progress is told after every
    /// fourth.
    fn run(&mut self, batches: usize, task: Duration) -> Vec<u64> {
        let one = |number: usize| {
            let size = u64::from(self.measure.size(None, self.now));
            self.outcomes += size;
            self.busy += task * u32::try_from(size).unwrap();
            if number % 4 == 3 {
                self.measure.progress(self.outcomes, u64::try_from(self.busy.as_micros()).unwrap(), self.now);
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
fn async_tasks_fill_what_is_in_flight() {
    let mut fleet = Fleet::new();
    fleet.measure.in_flight = 64;
    assert_eq!(fleet.measure.size(Some(1_000), fleet.now), 64, "so that all slots get some");
    let sizes = fleet.run(40, micros(100_000 / 64)); // 64 at a time, of 100 ms each
    assert_eq!((sizes[0], sizes.last()), (256, Some(&256)), "{sizes:?}");
    let sizes = fleet.run(60, micros(1));
    assert_eq!(sizes.last(), Some(&MAX), "tiny ones travel together as ever: {sizes:?}");
    let sizes = fleet.run(60, Duration::from_secs(1));
    assert_eq!(sizes.last(), Some(&256), "{sizes:?}");
    assert_eq!(fleet.measure.size(Some(100), fleet.now), 64);
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

/// The sizes of all batches of a job with `tasks` tasks, once its tasks are known to take `task`.
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
    // And no earlier than they must: full batches, and some dozens more, which cost a few
    // milliseconds.
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

/// Progress after `outcomes` outcomes, which took a millisecond each.
fn told(job: JobId, outcomes: u64) -> Event {
    let account = Account { done: outcomes, ..Account::default() };
    Event::Progress(Progress { job, account, sealed: false, busy_us: outcomes * 1_000 })
}

#[test]
fn while_sizes_grow_no_more_is_sent_ahead_than_outcomes_bear_out() {
    let (sizing, job) = (Sizing::waiting(Duration::MAX, 1), JobId::generate());
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

/// Returns whether a batch waits for news: of those that have an outcome `sent` are sent, of the
/// others `left` are left.
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
    assert!(!waits(micros(1_000), ahead(5_000, None), young), "half of an unknown number");
    assert!(!waits(micros(1), (10_000, 60_000, Some(50_000)), young), "they are as large as can be anyway");
    assert!(!waits(micros(200_000), ahead(5_000, Some(10_000)), young), "each travels alone anyway");
}

#[test]
fn news_that_does_not_come_is_waited_for_once() {
    let unheard = Sizing::new(None, 1);
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
