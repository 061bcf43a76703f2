//! The prefetch of a worker, which follows the duration of its batches: enough that no slot waits
//! for the broker, and no more. Waiting deliveries are lost to other workers, and the broker's
//! delivery timeout runs for them.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// Batches held for each slot, by level; at the last level, as many as a worker ever holds.
pub(crate) const BATCHES_PER_SLOT: [u16; 5] = [1, 4, 16, 64, u16::MAX];
/// The level for batches that take long.
pub(crate) const LOWEST_LEVEL: usize = 0;
/// The level of a worker without recent batches.
pub(crate) const START_LEVEL: usize = 1;
/// Work to hold for each slot. The time from the ack of a batch to the arrival of the next one is a
/// small part of that.
const TARGET_BUFFER: Duration = Duration::from_millis(100);
/// Work for each slot above which the worker holds less: applied to the level below. Between the
/// two values the level stays.
const MAX_BUFFER: Duration = Duration::from_millis(150);
/// Mean duration from which batches are long, so that the worker holds one for each slot. Twice the
/// batch duration that producers aim at for short tasks.
const LONG_BATCH_ENTER: Duration = Duration::from_millis(200);
/// Mean duration at or below which batches are no longer long.
const LONG_BATCH_EXIT: Duration = Duration::from_millis(150);
/// Batch durations for which outcomes are coalesced while all slots are busy: half of what is held
/// for each slot. More would stall the slot, since unacked batches count against the prefetch.
const COALESCE_BATCHES: f64 = BATCHES_PER_SLOT[START_LEVEL] as f64 / 2.0;
/// Upper bound of that delay: the outcome may be the last one of its job.
const COALESCE_DELAY_MAX: Duration = Duration::from_millis(100);
/// Delays below this are none.
const COALESCE_DELAY_MIN: Duration = Duration::from_millis(4);
/// Bytes of each queue up to which the prefetch grows, by the size of the latest messages.
const PREFETCH_MAX_BYTES: f64 = (8 << 20) as f64;
/// Wait of a delivery for a slot after which batches count as long, whatever the ended ones took.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Time without an ended batch after which the level is reset.
pub(crate) const RESET_AFTER: Duration = Duration::from_secs(1);
/// Weight of the newest batch in the means.
const MEAN_WEIGHT: f64 = 0.25;

/// The controller of a worker's prefetch level.
#[derive(Debug)]
pub(crate) struct PrefetchController {
    recent: Mutex<RecentBatches>,
    /// True while one batch is more than enough work.
    long: watch::Sender<bool>,
}

/// Exponential means over the latest batches.
#[derive(Debug)]
struct RecentBatches {
    /// Mean duration of a batch, in seconds.
    mean: f64,
    /// Mean size of a batch's message, in bytes.
    bytes: f64,
    recorded_at: Instant,
    /// Number of batches that have ended.
    ended: u64,
}

impl PrefetchController {
    pub(crate) fn new() -> Self {
        let recent = RecentBatches { mean: 0.0, bytes: 0.0, recorded_at: Instant::now(), ended: 0 };
        Self { recent: Mutex::new(recent), long: watch::Sender::new(false) }
    }

    /// Records a batch that ended: its duration and the size of its message in bytes.
    pub(crate) fn record_batch(&self, took: Duration, bytes: usize) {
        let mut recent = self.recent();
        recent.recorded_at = Instant::now();
        recent.ended += 1;
        recent.mean += (took.as_secs_f64() - recent.mean) * MEAN_WEIGHT;
        recent.bytes += (bytes as f64 - recent.bytes) * MEAN_WEIGHT;
        if recent.mean >= LONG_BATCH_ENTER.as_secs_f64() {
            self.set(true);
        } else if recent.mean <= LONG_BATCH_EXIT.as_secs_f64() {
            self.set(false);
        }
    }

    /// True if a prefetch of this number of messages stays within [`PREFETCH_MAX_BYTES`].
    pub(crate) fn has_room_for(&self, messages: u16) -> bool {
        f64::from(messages) * self.recent().bytes <= PREFETCH_MAX_BYTES
    }

    /// Returns how long outcomes may wait for those of further batches while no slot is idle.
    pub(crate) fn coalesce_delay(&self) -> Duration {
        let wait =
            Duration::try_from_secs_f64(self.recent().mean * COALESCE_BATCHES).unwrap_or(COALESCE_DELAY_MAX);
        if wait < COALESCE_DELAY_MIN { Duration::ZERO } else { wait.min(COALESCE_DELAY_MAX) }
    }

    /// Returns the number of batches that have ended.
    pub(crate) fn batches_ended(&self) -> u64 {
        self.recent().ended
    }

    /// Records that a delivery has waited for a slot for [`STALLED_AFTER`].
    pub(crate) fn record_stall(&self) {
        let mut recent = self.recent();
        recent.mean = recent.mean.max(STALLED_AFTER.as_secs_f64());
        self.set(true);
    }

    /// Returns the next level: at most one step away, or the lowest while batches take long. It
    /// goes up only if the present level has been used up, as `full` says.
    pub(crate) fn next_level(&self, now: usize, full: bool) -> usize {
        if *self.long.borrow() {
            return LOWEST_LEVEL;
        }
        let recent = self.recent();
        let held_at = |level: usize| recent.mean * f64::from(BATCHES_PER_SLOT[level]);
        if now < START_LEVEL || (now > START_LEVEL && recent.recorded_at.elapsed() >= RESET_AFTER) {
            START_LEVEL
        } else if full && now + 1 < BATCHES_PER_SLOT.len() && held_at(now) <= TARGET_BUFFER.as_secs_f64() {
            now + 1
        } else if now > START_LEVEL && held_at(now - 1) >= MAX_BUFFER.as_secs_f64() {
            now - 1
        } else {
            now
        }
    }

    /// Waits until batches are long, or, with `long` false, until they no longer are.
    pub(crate) async fn wait_until_long(&self, long: bool) {
        let _ = self.long.subscribe().wait_for(|now| *now == long).await; // the sender is here
    }

    fn set(&self, long: bool) {
        self.long.send_if_modified(|now| std::mem::replace(now, long) != long);
    }

    /// Locks the means. No code panics under this lock.
    fn recent(&self) -> MutexGuard<'_, RecentBatches> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_batch(controller: &PrefetchController, times: usize, millis: f64) {
        for _ in 0..times {
            controller.record_batch(Duration::from_secs_f64(millis / 1e3), 1_000);
        }
    }

    #[test]
    fn long_mode_has_hysteresis() {
        let controller = PrefetchController::new();
        let is_long = || *controller.long.borrow();
        controller.record_batch(Duration::from_millis(500), 1_000);
        assert!(!is_long(), "one long batch among many");
        record_batch(&controller, 10, 500.0);
        assert!(is_long());
        record_batch(&controller, 40, 180.0);
        assert!(is_long(), "between the two nothing changes");
        record_batch(&controller, 20, 50.0);
        assert!(!is_long());
        controller.record_stall();
        assert!(is_long());
        controller.record_batch(Duration::from_millis(50), 1_000);
        assert!(is_long(), "one short batch after a long wait");
    }

    /// The prefetch grows for shorter batches step by step, and only if the present prefetch is
    /// used up.
    #[test]
    fn level_follows_batch_duration() {
        let controller = PrefetchController::new();
        let steps = |from: usize, full| {
            let mut level = from;
            let mut steps = vec![level];
            while controller.next_level(level, full) != level {
                level = controller.next_level(level, full);
                steps.push(level);
            }
            steps
        };
        record_batch(&controller, 40, 0.01);
        assert_eq!(steps(START_LEVEL, true), [1, 2, 3, 4]);
        assert_eq!(steps(START_LEVEL, false), [1], "nothing was wanting");
        for (millis, from_start, from_top) in [
            (5.0, vec![1, 2, 3], vec![4, 3]),
            (8.0, vec![1, 2], vec![4, 3]), // between the bounds the level stays
            (20.0, vec![1, 2], vec![4, 3, 2]),
            (30.0, vec![1], vec![4, 3, 2]),
            (50.0, vec![1], vec![4, 3, 2, 1]),
            (120.0, vec![1], vec![4, 3, 2, 1]),
            (300.0, vec![1, 0], vec![4, 0]),
            (180.0, vec![1, 0], vec![4, 0]),
        ] {
            record_batch(&controller, 60, millis);
            assert_eq!((steps(START_LEVEL, true), steps(4, true)), (from_start, from_top), "{millis} ms");
        }
        record_batch(&controller, 60, 90.0);
        assert_eq!(steps(LOWEST_LEVEL, true), [0, 1]);
    }

    #[test]
    fn coalescing_follows_duration() {
        let controller = PrefetchController::new();
        assert_eq!(controller.coalesce_delay(), Duration::ZERO);
        for (millis, coalesce_delay) in [(1.0, 0), (20.0, 40), (45.0, 90), (500.0, 100), (0.1, 0)] {
            record_batch(&controller, 60, millis);
            assert_eq!(
                controller.coalesce_delay().as_secs_f64().mul_add(1e3, 0.5) as u64,
                coalesce_delay,
                "{millis} ms"
            );
        }
    }

    #[test]
    fn large_messages_limit_prefetch() {
        let controller = PrefetchController::new();
        assert!(controller.has_room_for(512), "of what is not known yet");
        (0..60).for_each(|_| controller.record_batch(Duration::from_micros(500), 64 << 10));
        assert!(controller.has_room_for(128) && !controller.has_room_for(512));
    }
}
