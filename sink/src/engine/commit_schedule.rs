//! When to commit: at once when a job ends, soon otherwise, but never so often that committing is all that is done.

use std::time::{Duration, Instant};

/// How soon something is to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Nobody waits for it.
    AtLeisure,
    /// It is progress.
    Soon,
    /// Somebody waits for it: it ends a job, or answers a question.
    Now,
}

/// After a commit is rested so many times as long as it took, so that committing takes a tenth of the time.
const REST: u32 = 9;
/// So much rest may be owed before a commit waits for it: enough for the few messages of a small job to be committed as
/// they come.
const OWED_MAX: Duration = Duration::from_millis(100);
/// So long may progress wait for what else comes. A job of a few short tasks ends within that time, and is committed once.
const SOON: Duration = Duration::from_millis(10);
/// And so much of the time for which its jobs have been running, if that is longer: who has waited for seconds does not mind,
/// and each commit costs a write to the disk here, and one on the broker for its acks.
const SHARE: u32 = 50;
/// But no longer than this, so that progress is seen each second whatever else it waits for.
const SOON_MAX: Duration = Duration::from_millis(200);
/// Under load, commits of progress are at least this far apart.
const APART_MIN: Duration = Duration::from_millis(20);
/// However long commits take, the next one does not wait longer than this.
const APART_MAX: Duration = Duration::from_millis(50);

/// When the last commit was, and what rest is owed.
#[derive(Debug)]
pub(crate) struct Pace {
    last: Instant,
    /// Until when all rest that is owed would be taken.
    rested: Instant,
    /// How long progress may wait.
    soon: Duration,
    /// Since when something waits to be committed that somebody cares for.
    waits_since: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { last: now, rested: now, soon: SOON, waits_since: None }
    }

    /// A commit ended.
    pub(crate) fn committed(&mut self, began: Instant, ended: Instant) {
        let rested = self.rested.max(began) + (ended - began) * (REST + 1);
        self.rested = rested.min(ended + OWED_MAX + APART_MAX);
        (self.last, self.waits_since) = (ended, None);
    }

    /// There is something to commit. What nobody waits for does not start the clock: else what comes after it would be
    /// committed without the company that it should wait for.
    /// The jobs whose progress it is have been running since `running` at least.
    pub(crate) fn waits(&mut self, urgency: Urgency, running: Instant, now: Instant) {
        if urgency > Urgency::AtLeisure {
            self.waits_since.get_or_insert(now);
            self.soon = (now.saturating_duration_since(running) / SHARE).clamp(SOON, SOON_MAX);
        }
    }

    /// When the next commit is due, if there is something to commit; `idle` if no message waits.
    pub(crate) fn due(&self, urgency: Urgency, idle: bool) -> Instant {
        let rested = self.rested.checked_sub(OWED_MAX).unwrap_or(self.last);
        match urgency {
            Urgency::Now => rested.max(self.last),
            Urgency::Soon if idle => rested.max(self.waits_since.unwrap_or(self.last) + self.soon),
            Urgency::Soon => rested.max(self.last + self.soon.clamp(APART_MIN, APART_MAX)),
            Urgency::AtLeisure => self.rested.max(self.last + APART_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Commits that take so long each, as soon as they are due: how long each waited.
    fn waits(cost: Duration, urgency: Urgency, idle: bool) -> Vec<Duration> {
        let mut now = Instant::now() + 10 * OWED_MAX;
        let mut pace = Pace::new(now);
        let mut wait = || {
            pace.waits(urgency, now, now);
            let due = pace.due(urgency, idle).max(now);
            let waited = due - now;
            now = due + cost;
            pace.committed(due, now);
            waited
        };
        (0..100).map(|_| wait()).collect()
    }

    #[test]
    fn a_few_ends_follow_one_another_at_once_and_many_take_a_tenth_of_the_time() {
        for idle in [true, false] {
            let waits = waits(2 * MS, Urgency::Now, idle);
            assert_eq!(waits[..5], [Duration::ZERO; 5]);
            assert_eq!(waits[10..], [18 * MS; 90]);
        }
    }

    #[test]
    fn progress_waits_for_company_and_longer_while_there_is_some() {
        for (cost, when_idle, under_load) in [(1, 10, 20), (4, 36, 36), (100, 50, 50)] {
            let steady = |idle| waits(cost * MS, Urgency::Soon, idle)[50..].to_vec();
            assert_eq!(steady(true), [when_idle * MS; 50], "{cost} ms");
            assert_eq!(steady(false), [under_load * MS; 50], "{cost} ms");
        }
    }

    #[test]
    fn what_nobody_waits_for_is_committed_when_all_rest_is_taken() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let due = |pace: &Pace| pace.due(Urgency::AtLeisure, true) - now;
        assert_eq!(due(&pace), APART_MAX);
        pace.committed(now, now + 10 * MS);
        assert_eq!(due(&pace), 100 * MS);
    }

    #[test]
    fn the_longer_its_jobs_have_been_running_the_longer_progress_may_wait() {
        let now = Instant::now() + 100_000 * MS;
        let waits = |running: u32| {
            let mut pace = Pace::new(now);
            pace.waits(Urgency::Soon, now - running * MS, now);
            (pace.due(Urgency::Soon, true) - now).as_millis()
        };
        assert_eq!([0, 400, 900, 4_500, 10_000, 90_000].map(waits), [10, 10, 18, 90, 200, 200]);
    }

    #[test]
    fn what_nobody_waits_for_takes_no_time_from_what_comes_after_it() {
        let now = Instant::now() + 10 * OWED_MAX;
        let mut pace = Pace::new(now);
        pace.waits(Urgency::AtLeisure, now, now);
        pace.waits(Urgency::Soon, now, now + 9 * MS);
        assert_eq!(pace.due(Urgency::Soon, true) - now, 9 * MS + SOON);
    }
}
