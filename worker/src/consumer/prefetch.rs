//! How long this worker's batches take, and so how many of them it holds: enough that no slot waits for the broker, and
//! no more, since what waits here waits for nobody else, and the time in which a broker wants a delivery settled runs
//! for it too.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// How many batches are held for each slot, level by level; at the last, as many as a worker ever holds.
pub(crate) const PER_SLOT: [u16; 5] = [1, 4, 16, 64, u16::MAX];
/// The level for batches that take long.
pub(crate) const LOWEST: usize = 0;
/// The level of a worker that knows nothing of its batches.
pub(crate) const START: usize = 1;
/// A worker wants so much work at hand for each slot: the time from one batch's ack to the next one's arrival is a small
/// part of that.
const ENOUGH: Duration = Duration::from_millis(100);
/// And it holds less when even the level below would be so much. Below that, nothing changes.
const TOO_MUCH: Duration = Duration::from_millis(150);
/// Batches that take so long are long: a worker then holds one for each slot. Twice what producers make of short tasks.
const LONG: Duration = Duration::from_millis(200);
/// And they are no longer when they take this or less.
const SHORT: Duration = Duration::from_millis(150);
/// What a busy slot has to say waits for company for as long as so many batches take: half of what is held for each
/// slot, since nothing comes for what is not acked.
const COMPANY: f64 = PER_SLOT[START] as f64 / 2.0;
/// But for no longer than this: it may be what ends the job.
const COMPANY_MAX: Duration = Duration::from_millis(100);
/// And not at all if that would be less than this.
const COMPANY_MIN: Duration = Duration::from_millis(4);
/// What is held goes up only as far as it takes no more than this, by the size of the latest messages: 8 MiB of each queue.
const BYTES_MAX: f64 = (8 << 20) as f64;
/// A delivery that has waited so long for a slot shows that batches take long, whatever those took that have ended.
pub(crate) const HELD_UP: Duration = Duration::from_secs(1);
/// A worker that has ended no batch for so long knows nothing of the next ones.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);
/// How much the newest batch counts in the average.
const WEIGHT: f64 = 0.25;

#[derive(Debug)]
pub(crate) struct Pace {
    recent: Mutex<Recent>,
    /// Whether one batch is more than enough work.
    long: watch::Sender<bool>,
}

#[derive(Debug)]
struct Recent {
    /// What batches take on average, in seconds.
    mean: f64,
    /// How large their messages are on average.
    bytes: f64,
    noted: Instant,
    /// How many have ended.
    ended: u64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let recent = Recent { mean: 0.0, bytes: 0.0, noted: Instant::now(), ended: 0 };
        Self { recent: Mutex::new(recent), long: watch::Sender::new(false) }
    }

    /// A batch took so long, in a message of so many bytes.
    pub(crate) fn note(&self, took: Duration, bytes: usize) {
        let mut recent = self.recent();
        recent.noted = Instant::now();
        recent.ended += 1;
        recent.mean += (took.as_secs_f64() - recent.mean) * WEIGHT;
        recent.bytes += (bytes as f64 - recent.bytes) * WEIGHT;
        if recent.mean >= LONG.as_secs_f64() {
            self.set(true);
        } else if recent.mean <= SHORT.as_secs_f64() {
            self.set(false);
        }
    }

    /// Whether so many messages may be held.
    pub(crate) fn has_room_for(&self, messages: u16) -> bool {
        f64::from(messages) * self.recent().bytes <= BYTES_MAX
    }

    /// How long outcomes may wait for those of further batches, as long as no slot is idle.
    pub(crate) fn company(&self) -> Duration {
        let wait = Duration::try_from_secs_f64(self.recent().mean * COMPANY).unwrap_or(COMPANY_MAX);
        if wait < COMPANY_MIN { Duration::ZERO } else { wait.min(COMPANY_MAX) }
    }

    /// How many batches have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.recent().ended
    }

    /// A delivery has waited for a slot for [`HELD_UP`].
    pub(crate) fn held_up(&self) {
        let mut recent = self.recent();
        recent.mean = recent.mean.max(HELD_UP.as_secs_f64());
        self.set(true);
    }

    /// The level after this one, a step away at most, unless batches take long: then it is the lowest. Up it goes only if
    /// the present one has been used up: `full`.
    pub(crate) fn level(&self, now: usize, full: bool) -> usize {
        if *self.long.borrow() {
            return LOWEST;
        }
        let recent = self.recent();
        let held_at = |level: usize| recent.mean * f64::from(PER_SLOT[level]);
        if now < START || (now > START && recent.noted.elapsed() >= FORGOTTEN_AFTER) {
            START
        } else if full && now + 1 < PER_SLOT.len() && held_at(now) <= ENOUGH.as_secs_f64() {
            now + 1
        } else if now > START && held_at(now - 1) >= TOO_MUCH.as_secs_f64() {
            now - 1
        } else {
            now
        }
    }

    /// Waits until batches are long, or no longer are.
    pub(crate) async fn becomes(&self, long: bool) {
        let _ = self.long.subscribe().wait_for(|now| *now == long).await; // the sender is here
    }

    fn set(&self, long: bool) {
        self.long.send_if_modified(|now| std::mem::replace(now, long) != long);
    }

    /// Nothing panics under the lock.
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(pace: &Pace, times: usize, millis: f64) {
        for _ in 0..times {
            pace.note(Duration::from_secs_f64(millis / 1e3), 1_000);
        }
    }

    #[test]
    fn it_is_slow_to_call_batches_long_or_short() {
        let pace = Pace::new();
        let is_long = || *pace.long.borrow();
        pace.note(Duration::from_millis(500), 1_000);
        assert!(!is_long(), "one long batch among many");
        note(&pace, 10, 500.0);
        assert!(is_long());
        note(&pace, 40, 180.0);
        assert!(is_long(), "between the two nothing changes");
        note(&pace, 20, 50.0);
        assert!(!is_long());
        pace.held_up();
        assert!(is_long());
        pace.note(Duration::from_millis(50), 1_000);
        assert!(is_long(), "one short batch after a long wait");
    }

    #[test]
    fn it_holds_more_of_shorter_batches_step_by_step_and_only_if_what_it_holds_is_used_up() {
        let pace = Pace::new();
        let steps = |from: usize, full| {
            let mut level = from;
            let mut steps = vec![level];
            while pace.level(level, full) != level {
                level = pace.level(level, full);
                steps.push(level);
            }
            steps
        };
        note(&pace, 40, 0.01);
        assert_eq!(steps(START, true), [1, 2, 3, 4]);
        assert_eq!(steps(START, false), [1], "nothing was wanting");
        for (millis, from_start, from_top) in [
            (5.0, vec![1, 2, 3], vec![4, 3]),
            (8.0, vec![1, 2], vec![4, 3]), // what it is, it stays
            (20.0, vec![1, 2], vec![4, 3, 2]),
            (30.0, vec![1], vec![4, 3, 2]),
            (50.0, vec![1], vec![4, 3, 2, 1]),
            (120.0, vec![1], vec![4, 3, 2, 1]),
            (300.0, vec![1, 0], vec![4, 0]),
            (180.0, vec![1, 0], vec![4, 0]),
        ] {
            note(&pace, 60, millis);
            assert_eq!((steps(START, true), steps(4, true)), (from_start, from_top), "{millis} ms");
        }
        note(&pace, 60, 90.0);
        assert_eq!(steps(LOWEST, true), [0, 1]);
    }

    #[test]
    fn the_shorter_batches_are_the_shorter_outcomes_wait() {
        let pace = Pace::new();
        assert_eq!(pace.company(), Duration::ZERO);
        for (millis, company) in [(1.0, 0), (20.0, 40), (45.0, 90), (500.0, 100), (0.1, 0)] {
            note(&pace, 60, millis);
            assert_eq!(pace.company().as_secs_f64().mul_add(1e3, 0.5) as u64, company, "{millis} ms");
        }
    }

    #[test]
    fn of_large_messages_it_holds_fewer() {
        let pace = Pace::new();
        assert!(pace.has_room_for(512), "of what is not known yet");
        (0..60).for_each(|_| pace.note(Duration::from_micros(500), 64 << 10));
        assert!(pace.has_room_for(128) && !pace.has_room_for(512));
    }
}
