//! The schedule of commits: at once when a job ends, soon otherwise, and within a tenth of the time
//! in the long run.

use std::time::{Duration, Instant};

/// The urgency of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Only clean-up of the outbox, which delays no one.
    Lazy,
    /// Progress, which may wait for more.
    Batched,
    /// A job's end or the answer to a question, which a caller waits for.
    Immediate,
}

/// Idle time after a commit, as a multiple of its duration: commits use at most a tenth of the
/// time.
const REST_RATIO: u32 = 9;
/// Idle time that may be owed before a commit waits for it: enough to commit the few messages of a
/// small job as they come.
const REST_DEBT_MAX: Duration = Duration::from_millis(100);
/// Minimum time that progress waits for more. A job of a few short tasks ends within it and needs
/// one commit.
const PROGRESS_DELAY_MIN: Duration = Duration::from_millis(10);
/// Divisor of the running time of the jobs: progress may also wait for this fraction of it. A
/// caller that has waited for seconds does not notice, and each commit costs a disk write here and,
/// for its acks, one on the broker.
const RUNNING_TIME_DIVISOR: u32 = 50;
/// Maximum time that progress waits, so that it is visible each second despite further delays.
const PROGRESS_DELAY_MAX: Duration = Duration::from_millis(200);
/// Minimum time between commits of progress under load.
const COMMIT_GAP_MIN: Duration = Duration::from_millis(20);
/// Maximum wait for the next commit, however long commits take.
const COMMIT_GAP_MAX: Duration = Duration::from_millis(50);

/// The time of the last commit, and the idle time owed since.
#[derive(Debug)]
pub(crate) struct CommitSchedule {
    last_commit: Instant,
    /// The time at which all owed idle time has passed.
    rest_until: Instant,
    /// Time that progress may wait.
    progress_delay: Duration,
    /// The time since which a commit that is not lazy has been pending.
    pending_since: Option<Instant>,
}

impl CommitSchedule {
    pub(crate) fn new(now: Instant) -> Self {
        Self { last_commit: now, rest_until: now, progress_delay: PROGRESS_DELAY_MIN, pending_since: None }
    }

    /// Records a commit and the idle time that it owes.
    pub(crate) fn record_commit(&mut self, began: Instant, ended: Instant) {
        let rested = self.rest_until.max(began) + (ended - began) * (REST_RATIO + 1);
        self.rest_until = rested.min(ended + REST_DEBT_MAX + COMMIT_GAP_MAX);
        (self.last_commit, self.pending_since) = (ended, None);
    }

    /// Notes that a commit is pending. A lazy one does not start the clock; otherwise later
    /// progress would be committed before it has waited for more. `running` is the earliest time
    /// since which the jobs with progress have all been running.
    pub(crate) fn note_pending(&mut self, urgency: Urgency, running: Instant, now: Instant) {
        if urgency > Urgency::Lazy {
            self.pending_since.get_or_insert(now);
            self.progress_delay = (now.saturating_duration_since(running) / RUNNING_TIME_DIVISOR)
                .clamp(PROGRESS_DELAY_MIN, PROGRESS_DELAY_MAX);
        }
    }

    /// Returns when the pending commit is due; `idle` if no command waits.
    pub(crate) fn due(&self, urgency: Urgency, idle: bool) -> Instant {
        let rested = self.rest_until.checked_sub(REST_DEBT_MAX).unwrap_or(self.last_commit);
        match urgency {
            Urgency::Immediate => rested.max(self.last_commit),
            Urgency::Batched if idle => {
                rested.max(self.pending_since.unwrap_or(self.last_commit) + self.progress_delay)
            }
            Urgency::Batched => {
                rested.max(self.last_commit + self.progress_delay.clamp(COMMIT_GAP_MIN, COMMIT_GAP_MAX))
            }
            Urgency::Lazy => self.rest_until.max(self.last_commit + COMMIT_GAP_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_MS: Duration = Duration::from_millis(1);

    /// Commits of equal cost, each as soon as it is due. Returns how long each waited.
    fn waits(cost: Duration, urgency: Urgency, idle: bool) -> Vec<Duration> {
        let mut now = Instant::now() + 10 * REST_DEBT_MAX;
        let mut schedule = CommitSchedule::new(now);
        let mut wait = || {
            schedule.note_pending(urgency, now, now);
            let due = schedule.due(urgency, idle).max(now);
            let waited = due - now;
            now = due + cost;
            schedule.record_commit(due, now);
            waited
        };
        (0..100).map(|_| wait()).collect()
    }

    /// A few ends are committed at once; many use a tenth of the time.
    #[test]
    fn ends_commit_at_once_within_limit() {
        for idle in [true, false] {
            let waits = waits(2 * ONE_MS, Urgency::Immediate, idle);
            assert_eq!(waits[..5], [Duration::ZERO; 5]);
            assert_eq!(waits[10..], [18 * ONE_MS; 90]);
        }
    }

    /// Progress waits for more of it, longer under load.
    #[test]
    fn progress_commits_are_batched() {
        for (cost, when_idle, under_load) in [(1, 10, 20), (4, 36, 36), (100, 50, 50)] {
            let steady = |idle| waits(cost * ONE_MS, Urgency::Batched, idle)[50..].to_vec();
            assert_eq!(steady(true), [when_idle * ONE_MS; 50], "{cost} ms");
            assert_eq!(steady(false), [under_load * ONE_MS; 50], "{cost} ms");
        }
    }

    /// A lazy commit is due when all owed idle time has passed.
    #[test]
    fn lazy_commit_waits_for_full_rest() {
        let now = Instant::now();
        let mut schedule = CommitSchedule::new(now);
        let due = |schedule: &CommitSchedule| schedule.due(Urgency::Lazy, true) - now;
        assert_eq!(due(&schedule), COMMIT_GAP_MAX);
        schedule.record_commit(now, now + 10 * ONE_MS);
        assert_eq!(due(&schedule), 100 * ONE_MS);
    }

    /// Progress of jobs that have been running for longer may wait for longer.
    #[test]
    fn long_jobs_commit_less_often() {
        let now = Instant::now() + 100_000 * ONE_MS;
        let waits = |running: u32| {
            let mut schedule = CommitSchedule::new(now);
            schedule.note_pending(Urgency::Batched, now - running * ONE_MS, now);
            (schedule.due(Urgency::Batched, true) - now).as_millis()
        };
        assert_eq!([0, 400, 900, 4_500, 10_000, 90_000].map(waits), [10, 10, 18, 90, 200, 200]);
    }

    /// A lazy change does not shorten the wait of later progress.
    #[test]
    fn lazy_change_starts_no_clock() {
        let now = Instant::now() + 10 * REST_DEBT_MAX;
        let mut schedule = CommitSchedule::new(now);
        schedule.note_pending(Urgency::Lazy, now, now);
        schedule.note_pending(Urgency::Batched, now, now + 9 * ONE_MS);
        assert_eq!(schedule.due(Urgency::Batched, true) - now, 9 * ONE_MS + PROGRESS_DELAY_MIN);
    }
}
