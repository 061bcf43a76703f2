//! When to commit: at once when nothing else is to be done, but never so often that committing is all that is done.

use std::time::{Duration, Instant};

/// Between two commits passes this many times what the last one took, so that committing takes a tenth of the time.
const REST: u32 = 9;
/// Under load, commits are at least this far apart.
const APART_MIN: Duration = Duration::from_millis(20);
/// However long a commit takes, the next one does not wait longer than this.
const APART_MAX: Duration = Duration::from_millis(50);

/// When the last commit was, and what it took.
#[derive(Debug)]
pub(crate) struct Pace {
    last: Instant,
    cost: Duration,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { last: now, cost: Duration::ZERO }
    }

    /// A commit ended.
    pub(crate) fn committed(&mut self, began: Instant, ended: Instant) {
        (self.last, self.cost) = (ended, ended - began);
    }

    /// When the next commit is due, if there is something to commit; `idle` if no message waits.
    pub(crate) fn due(&self, idle: bool) -> Instant {
        let rest = (self.cost * REST).min(APART_MAX);
        self.last + if idle { rest } else { rest.max(APART_MIN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_waits_for_company_only_while_there_is_some() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let apart = |pace: &Pace, ended: Instant| [pace.due(true) - ended, pace.due(false) - ended];
        assert_eq!(apart(&pace, start), [Duration::ZERO, APART_MIN]);
        for (cost, expected) in [(1, [9, 20]), (4, [36, 36]), (100, [50, 50])] {
            let ended = start + Duration::from_millis(cost);
            pace.committed(start, ended);
            assert_eq!(apart(&pace, ended), expected.map(Duration::from_millis));
        }
    }
}
