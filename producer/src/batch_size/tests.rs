use gristmill_shared::Account;

use super::*;

const MAX_TASKS: u64 = BATCH_MAX_TASKS as u64;

/// A fleet that runs all tasks at once and reports progress after each fourth batch.
struct SimulatedFleet {
    state: SizerState,
    now: Instant,
    outcomes: u64,
    busy: Duration,
}

impl SimulatedFleet {
    fn new() -> Self {
        Self { state: SizerState::default(), now: Instant::now(), outcomes: 0, busy: Duration::ZERO }
    }

    /// Returns the sizes of the next batches, of tasks that take `task` each. Progress is reported
    /// after each fourth batch.
    fn run(&mut self, batches: usize, task: Duration) -> Vec<u64> {
        let one = |number: usize| {
            let size = u64::from(self.state.size(None, self.now));
            self.outcomes += size;
            self.busy += task * u32::try_from(size).unwrap();
            if number % 4 == 3 {
                self.state.record_progress(
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

impl SizerState {
    fn size(&mut self, left: Option<u64>, now: Instant) -> u32 {
        self.size = self.next_size(left, now).tasks;
        self.size
    }
}

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// Batches grow by doubling; long tasks never share a batch.
#[test]
fn batches_double_up_to_target() {
    for (task, expected) in
        [(0, MAX_TASKS), (3, MAX_TASKS), (10, MAX_TASKS), (1_000, 100), (30_000, 3), (60_000, 1)]
    {
        let sizes = SimulatedFleet::new().run(100, micros(task));
        assert_eq!(sizes.last(), Some(&expected), "{task} us: {sizes:?}");
        assert_eq!(sizes[..4], [1; 4], "nothing was measured before");
        assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] * 2), "{task} us: {sizes:?}");
        assert!(sizes.iter().position(|size| *size == expected) <= Some(24), "{task} us: {sizes:?}");
    }
    let sizes = SimulatedFleet::new().run(100, Duration::from_secs(1));
    assert_eq!(sizes, [1; 100], "long tasks never share a batch");
}

#[test]
fn batch_at_most_twice_measured() {
    let mut fleet = SimulatedFleet::new();
    fleet.run(4, micros(1)); // four unrepresentatively fast tasks
    assert_eq!(fleet.state.outcomes, 4);
    let sizes: Vec<_> = (0..6).map(|_| fleet.state.size(None, fleet.now)).collect();
    assert_eq!(sizes, [2, 4, 8, 8, 8, 8]);
}

#[test]
fn async_tasks_fill_slots() {
    let mut fleet = SimulatedFleet::new();
    fleet.state.in_flight = 64;
    assert_eq!(fleet.state.size(Some(1_000), fleet.now), 64, "all slots get some");
    let sizes = fleet.run(40, micros(100_000 / 64)); // 64 at a time, of 100 ms each
    assert_eq!((sizes[0], sizes.last()), (256, Some(&256)), "{sizes:?}");
    let sizes = fleet.run(60, micros(1));
    assert_eq!(sizes.last(), Some(&MAX_TASKS), "tiny tasks share a batch: {sizes:?}");
    let sizes = fleet.run(60, Duration::from_secs(1));
    assert_eq!(sizes.last(), Some(&256), "{sizes:?}");
    assert_eq!(fleet.state.size(Some(100), fleet.now), 64);
}

#[test]
fn no_growth_without_workers() {
    let mut state = SizerState::default();
    let now = Instant::now();
    state.record_progress(0, 0, now); // the sink has opened the job
    assert!((0..1_000).all(|_| state.size(Some(1_000_000), now) == 1));
}

/// Longer tasks shrink the next batch at once; shorter ones let it grow again by doubling.
#[test]
fn batch_size_follows_duration() {
    let mut fleet = SimulatedFleet::new();
    assert_eq!(fleet.run(60, micros(1)).last(), Some(&MAX_TASKS));
    // The first task of a batch that was sent already takes a second.
    let busy = u64::try_from(fleet.busy.as_micros()).unwrap();
    fleet.state.record_progress(fleet.outcomes + 1, busy + 1_000_000, fleet.now);
    assert_eq!(fleet.state.size(None, fleet.now), 1);
    (fleet.outcomes, fleet.busy) = (fleet.outcomes + 1, fleet.busy + micros(1_000_000));
    assert!(fleet.run(20, Duration::from_secs(1))[4..].iter().all(|size| *size == 1));
    let sizes = fleet.run(60, micros(1));
    assert_eq!(sizes.last(), Some(&MAX_TASKS), "{sizes:?}");
    assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] * 2), "{sizes:?}");
}

#[test]
fn resumed_job_starts_measured() {
    let (mut state, now) = (SizerState::default(), Instant::now());
    state.record_progress(1_000_000, 1_000_000_000, now); // a millisecond each
    let sizes: Vec<_> = (0..8).map(|_| state.size(None, now)).collect();
    assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 100]);
}

#[test]
fn retried_tasks_are_not_measured() {
    let (mut state, now) = (SizerState::default(), Instant::now());
    state.record_progress(100, 100_000, now);
    state.record_progress(90, 100_000, now);
    assert_eq!((state.latest.tasks, state.outcomes), (100.0, 90));
}

/// Returns the sizes of all batches of a job with `tasks` tasks that are known to take `task`.
fn sizes_until_end(tasks: u64, task: Duration, slots: Option<u32>) -> Vec<u64> {
    let mut fleet = SimulatedFleet::new();
    fleet.run(100, task);
    if let Some(slots) = slots {
        fleet.state.record_heartbeat(&"mill-1".parse().unwrap(), slots, fleet.now);
    }
    let (mut left, mut sizes) = (tasks, Vec::new());
    while left > 0 {
        let size = u64::from(fleet.state.size(Some(left), fleet.now)).min(left);
        left -= size;
        sizes.push(size);
    }
    sizes
}

/// Batches shrink towards the end so that all slots end together, and no earlier than needed.
#[test]
fn tail_batches_shrink() {
    for slots in [1, 2, 16, 1_000] {
        let sizes = sizes_until_end(100_000, micros(1_000), Some(slots));
        let mut left = 100_000;
        for size in &sizes {
            let share = left / (2 * u64::from(slots));
            assert!(*size <= share.max(10), "{size} of {left} for {slots} slots");
            left -= size;
        }
        assert!(sizes.last() <= Some(&10), "{slots} slots: {sizes:?}");
    }
    // They shrink no earlier than they must: full batches, and some dozens more, which cost a few
    // milliseconds.
    let sizes = sizes_until_end(2_000, micros(1_000), Some(2));
    assert!(sizes[..5].iter().all(|size| *size == 100) && sizes.len() < 100, "{} {sizes:?}", sizes.len());
}

#[test]
fn tail_batches_keep_min_work() {
    let sizes = sizes_until_end(1_000_000, micros(1), Some(64));
    let (_, but_the_last) = sizes.split_last().unwrap();
    assert!(but_the_last.iter().all(|size| *size == MAX_TASKS), "{sizes:?}");
    let sizes = sizes_until_end(1_000_000, micros(10), Some(64));
    let (_, but_the_last) = sizes.split_last().unwrap();
    assert!(but_the_last.iter().all(|size| *size >= 1_000), "{sizes:?}");
}

/// A progress event after `outcomes` outcomes, which took a millisecond each.
fn progress_event(job: JobId, outcomes: u64) -> Event {
    let account = Account { done: outcomes, ..Account::default() };
    Event::Progress(Progress { job, account, sealed: false, busy_us: outcomes * 1_000 })
}

/// While sizes grow, the tasks sent ahead are bounded by the number of outcomes.
#[test]
fn lookahead_follows_outcomes() {
    let (sizer, job) = (BatchSizer::measured(Duration::MAX, 1), JobId::generate());
    let next = || {
        let size = sizer.next_size(None);
        sizer.record_sent(size);
        size
    };
    let sizes = |batches: usize| -> Vec<_> { (0..batches).map(|_| next()).collect() };
    let after = |outcomes| {
        std::thread::scope(|scope| {
            let next = scope.spawn(next); // waits, unless the event comes first
            sizer.apply_event(job, &progress_event(job, outcomes));
            next.join().unwrap()
        })
    };
    assert_eq!(sizes(64), [1; 64]);
    assert_eq!(after(2), 2, "65 sent ahead of 0");
    assert_eq!(after(16), 4, "66 sent ahead of 2");
    assert_eq!(sizes(2), [8, 16], "78 ahead of 16");
    assert_eq!(after(64), 32);
    assert_eq!(sizes(3), [64, 100, 100], "the target, so nothing waits any more");
    assert_eq!(sizes(100), [100; 100]);
}

/// Returns true if a batch waits for progress after `sent` tasks were sent, of which `outcomes`
/// have an outcome, while `left` tasks remain.
fn waits(task: Duration, (outcomes, sent, left): (u64, u64, Option<u64>), age: Duration) -> bool {
    let (mut state, now) = (SizerState::default(), Instant::now());
    state.record_progress(outcomes, outcomes * u64::try_from(task.as_micros()).unwrap(), now);
    (state.sent, state.size) = (sent, BATCH_MAX_TASKS);
    let size = state.next_size(left, now + age);
    state.should_wait(size, left, now + age)
}

#[test]
fn larger_batch_waits_for_outcomes() {
    // Tasks of 1 µs allow 10,000 a batch, but few outcomes are measured yet.
    for left in [None, Some(1_000_000)] {
        let waits = |outcomes, sent| waits(micros(1), (outcomes, sent, left), WARM_UP);
        assert!(!waits(10, 10 + 63) && waits(10, 10 + 64), "work for dozens of slots");
        assert!(!waits(100, 100 + 199) && waits(100, 100 + 200), "or twice as many as have an outcome");
    }
}

/// In the first second half of the tasks is kept back, unless that changes no batch size.
#[test]
fn warm_up_keeps_half_back() {
    let warming_up = WARM_UP / 2;
    let ahead = |ahead: u64, left| (1_000, 1_000 + ahead, left);
    assert!(!waits(micros(1_000), ahead(5_000 - 1, Some(10_000)), warming_up));
    assert!(waits(micros(1_000), ahead(5_000, Some(10_000)), warming_up));
    assert!(
        !waits(micros(1_000), ahead(2_000 - 1, Some(1_000)), warming_up),
        "or as much as when sizes grow"
    );
    assert!(!waits(micros(1_000), ahead(5_000, Some(10_000)), WARM_UP), "the warm-up is over");
    assert!(!waits(micros(1_000), ahead(5_000, None), warming_up), "half of an unknown number");
    assert!(
        !waits(micros(1), (10_000, 60_000, Some(50_000)), warming_up),
        "they have the largest size anyway"
    );
    assert!(!waits(micros(200_000), ahead(5_000, Some(10_000)), warming_up), "each travels alone anyway");
}

#[test]
fn absent_progress_is_awaited_once() {
    let sizer = BatchSizer::new(None, 1);
    let began = Instant::now();
    let next = |_| {
        sizer.record_sent(1);
        sizer.next_size(None)
    };
    let sizes: Vec<_> = (0..1_000).map(next).collect();
    assert!(sizes.iter().all(|size| *size == 1), "{sizes:?}");
    assert!((PROGRESS_WAIT_MAX..PROGRESS_WAIT_MAX * 10).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[test]
fn silent_workers_expire() {
    let (mut state, start) = (SizerState::default(), Instant::now());
    assert_eq!(state.slots(start), SLOTS_MIN);
    for (worker, slots, second) in [("a", 20, 0), ("b", 40, 0), ("b", 40, 2), ("a", 30, 4)] {
        state.record_heartbeat(&worker.parse().unwrap(), slots, start + Duration::from_secs(second));
    }
    assert_eq!(state.slots(start + Duration::from_secs(7)), 70);
    assert_eq!(state.slots(start + Duration::from_secs(9)), 30);
    assert_eq!(state.slots(start + Duration::from_secs(10)), SLOTS_MIN);
}
