//! When to commit: at once when nothing else is to be done, but never so often that committing is all that is done.

use std::time::{Duration, Instant};

/// After a commit is rested so many times as long as it took, so that committing takes a tenth of the time.
const REST: u32 = 9;
/// So much rest may be owed before a commit waits for it: enough for the few messages of a small job to be committed as
/// they come.
const OWED_MAX: Duration = Duration::from_millis(100);
/// Under load, commits are at least this far apart.
const APART_MIN: Duration = Duration::from_millis(20);
/// However long commits take, the next one does not wait longer than this.
const APART_MAX: Duration = Duration::from_millis(50);

/// When the last commit was, and what rest is owed.
#[derive(Debug)]
pub(crate) struct Pace {
    last: Instant,
    /// Until when all rest that is owed would be taken.
    rested: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { last: now, rested: now }
    }

    /// A commit ended.
    pub(crate) fn committed(&mut self, began: Instant, ended: Instant) {
        let rested = self.rested.max(began) + (ended - began) * (REST + 1);
        self.rested = rested.min(ended + OWED_MAX + APART_MAX);
        self.last = ended;
    }

    /// When the next commit is due, if there is something to commit; `idle` if no message waits.
    pub(crate) fn due(&self, idle: bool) -> Instant {
        let rested = self.rested.checked_sub(OWED_MAX).unwrap_or(self.last);
        rested.max(if idle { self.last } else { self.last + APART_MIN })
    }

    /// When a commit is due of what nobody waits for.
    pub(crate) fn due_at_leisure(&self) -> Instant {
        self.rested.max(self.last + APART_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Commits that take so long each, as soon as they are due: how long each waited.
    fn waits(cost: Duration, idle: bool) -> Vec<Duration> {
        let mut now = Instant::now() + 10 * OWED_MAX;
        let mut pace = Pace::new(now);
        let mut wait = || {
            let due = pace.due(idle).max(now);
            let waited = due - now;
            now = due + cost;
            pace.committed(due, now);
            waited
        };
        (0..100).map(|_| wait()).collect()
    }

    #[test]
    fn a_few_commits_follow_one_another_at_once_and_many_take_a_tenth_of_the_time() {
        let waits = waits(2 * MS, true);
        assert_eq!(waits[..5], [Duration::ZERO; 5]);
        assert_eq!(waits[10..], [18 * MS; 90]);
    }

    #[test]
    fn a_commit_waits_for_company_only_while_there_is_some() {
        for (cost, expected) in [(1, 20), (4, 36), (100, 50)] {
            assert_eq!(waits(cost * MS, false)[50..], [expected * MS; 50], "{cost} ms");
        }
        assert_eq!(waits(100 * MS, true)[50..], [50 * MS; 50]);
    }

    #[test]
    fn what_nobody_waits_for_takes_no_rest_from_what_is_waited_for() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.due_at_leisure(), now + APART_MAX);
        pace.committed(now, now + 20 * MS);
        assert_eq!(pace.due_at_leisure(), now + 170 * MS);
    }
}
