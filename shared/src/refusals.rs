//! Tasks whose outcomes a sink refused, gathered until their producer sends them again.

use std::{
    collections::BTreeMap,
    mem,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{Round, wire::Refused};

/// The most ranges that wait to be sent again. Of further ones only is kept that there are some;
/// then the producer asks the sink for all that is missing.
pub const REFUSED_MAX_RANGES: usize = 10_000;

/// Tasks of one job that are to be sent again because their outcomes were refused.
///
/// [`JobBoard::refused`](crate::JobBoard::refused) gives it; clones share what they hold.
#[derive(Debug, Clone, Default)]
pub struct RefusedTasks(Arc<Shared>);

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pending: Mutex<Pending>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    round: Round,
    /// Start and end of each range; they neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    /// Ranges were dropped.
    is_incomplete: bool,
}

impl Pending {
    /// Adds a range, joined with those that it meets.
    fn add(&mut self, mut range: Range<u64>) {
        let met = self.ranges.range(..=range.end).rev().take_while(|(_, end)| **end >= range.start);
        let met: Vec<u64> = met.map(|(start, _)| *start).collect();
        for start in met {
            if let Some(end) = self.ranges.remove(&start) {
                range = start.min(range.start)..end.max(range.end);
            }
        }
        self.ranges.insert(range.start, range.end);
    }
}

/// Tasks to be sent again in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRanges {
    /// The round in which they are sent.
    pub round: Round,
    /// Which tasks: ascending, disjoint, none empty; at least one range.
    pub ranges: Vec<Range<u64>>,
    /// True if further tasks were refused that are not named, since there were too many ranges.
    pub is_incomplete: bool,
}

impl RefusedTasks {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Takes what has been refused so far, if there is anything.
    #[must_use]
    pub fn take(&self) -> Option<RefusedRanges> {
        let mut pending = self.0.pending();
        let ranges: Vec<_> =
            mem::take(&mut pending.ranges).into_iter().map(|(start, end)| start..end).collect();
        let is_incomplete = mem::take(&mut pending.is_incomplete);
        let round = pending.round;
        (!ranges.is_empty()).then_some(RefusedRanges { round, ranges, is_incomplete })
    }

    /// Waits until something has been refused, and takes it. Cancel safe.
    pub async fn next(&self) -> RefusedRanges {
        loop {
            let mut some = std::pin::pin!(self.0.some.notified());
            some.as_mut().enable();
            if let Some(ranges) = self.take() {
                return ranges;
            }
            some.await;
        }
    }
}

impl Shared {
    /// Adds the tasks of a fact. Ranges of earlier rounds are dropped: a round ended, and with it
    /// its tasks.
    pub(crate) fn add(&self, Refused { job, round, ranges, .. }: &Refused) {
        let mut pending = self.pending();
        if *round > pending.round {
            pending.ranges.clear();
            (pending.round, pending.is_incomplete) = (*round, false);
        }
        if *round < pending.round {
            return;
        }
        for (first, tasks) in ranges {
            if *tasks > 0 {
                pending.add(first.0..first.plus(*tasks).0);
            }
            if pending.ranges.len() > REFUSED_MAX_RANGES {
                pending.ranges.pop_last();
                pending.is_incomplete = true;
            }
        }
        if pending.is_incomplete {
            tracing::debug!(%job, "more ranges of tasks were refused than are remembered; the sink is asked for them");
        }
        self.some.notify_waiters();
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobId, TaskIndex};

    fn refused(round: u32, ranges: &[(u64, u64)]) -> Refused {
        Refused {
            job: JobId::generate(),
            round: Round(round),
            worker: "old".parse().unwrap(),
            reason: "another version".into(),
            ranges: ranges.iter().map(|(first, tasks)| (TaskIndex(*first), *tasks)).collect(),
        }
    }

    #[tokio::test]
    async fn refused_ranges_are_joined_and_taken_once() {
        let tasks = RefusedTasks::default();
        let add = async {
            tasks.shared().add(&refused(0, &[(4, 2), (0, 3)]));
            tasks.shared().add(&refused(0, &[(3, 1), (9, 1), (7, 0)]));
        };
        let (ranges, ()) = tokio::join!(tasks.next(), add);
        assert_eq!(
            ranges,
            RefusedRanges { round: Round(0), ranges: vec![0..6, 9..10], is_incomplete: false }
        );
        assert_eq!(tasks.take(), None);
    }

    #[test]
    fn a_later_round_replaces_earlier_ranges() {
        let tasks = RefusedTasks::default();
        tasks.shared().add(&refused(0, &[(0, 3)]));
        tasks.shared().add(&refused(1, &[(5, 1), (7, 1)]));
        tasks.shared().add(&refused(0, &[(8, 1)]));
        let later = RefusedRanges { round: Round(1), ranges: vec![5..6, 7..8], is_incomplete: false };
        assert_eq!(tasks.take(), Some(later));
    }

    #[test]
    fn refused_ranges_have_a_bound() {
        let tasks = RefusedTasks::default();
        let many: Vec<_> = (0..=REFUSED_MAX_RANGES as u64).map(|place| (2 * place, 1)).collect();
        tasks.shared().add(&refused(0, &many));
        let taken = tasks.take().unwrap();
        assert_eq!((taken.ranges.len(), taken.is_incomplete), (REFUSED_MAX_RANGES, true));
        // Neighbours are one range, in whatever order they come.
        for index in (0..=3 * REFUSED_MAX_RANGES as u64).rev() {
            tasks.shared().add(&refused(0, &[(index, 1)]));
        }
        let taken = tasks.take().unwrap();
        assert_eq!((taken.ranges.len(), taken.is_incomplete), (1, false));
    }
}
