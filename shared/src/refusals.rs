//! Tasks whose outcomes a sink refused, collected until their producer sends them again.

use std::{
    collections::BTreeMap,
    mem,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{Round, wire::Refused};

/// The most ranges that wait to be sent again. Further ranges are dropped and only set a flag; then
/// the producer asks the sink for all missing tasks.
pub const REFUSED_MAX_RANGES: usize = 10_000;

/// Tasks of one job that are to be sent again because their outcomes were refused.
///
/// [`JobTracker::refused_tasks`](crate::JobTracker::refused_tasks) returns it; clones share their
/// ranges.
#[derive(Debug, Clone, Default)]
pub struct RefusedTasks(Arc<RefusalQueue>);

#[derive(Debug, Default)]
pub(crate) struct RefusalQueue {
    pending: Mutex<PendingRanges>,
    added: Notify,
}

#[derive(Debug, Default)]
struct PendingRanges {
    round: Round,
    /// The start and end of each range; ranges neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    /// True if ranges were dropped.
    is_incomplete: bool,
}

impl PendingRanges {
    /// Adds a range and joins it with the ranges that it overlaps or touches.
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

/// Tasks to be sent again in one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRanges {
    /// The round in which they are sent.
    pub round: Round,
    /// The task indices: at least one range, ascending, disjoint, none empty.
    pub ranges: Vec<Range<u64>>,
    /// True if further tasks were refused that are not listed, because there were too many ranges.
    pub is_incomplete: bool,
}

impl RefusedTasks {
    pub(crate) fn queue(&self) -> &Arc<RefusalQueue> {
        &self.0
    }

    /// Takes the tasks that have been refused so far, or returns `None`.
    #[must_use]
    pub fn take(&self) -> Option<RefusedRanges> {
        let mut pending = self.0.pending();
        let ranges: Vec<_> =
            mem::take(&mut pending.ranges).into_iter().map(|(start, end)| start..end).collect();
        let is_incomplete = mem::take(&mut pending.is_incomplete);
        let round = pending.round;
        (!ranges.is_empty()).then_some(RefusedRanges { round, ranges, is_incomplete })
    }

    /// Waits until tasks have been refused, and takes them. Cancel safe.
    pub async fn next(&self) -> RefusedRanges {
        loop {
            let mut added = std::pin::pin!(self.0.added.notified());
            added.as_mut().enable();
            if let Some(ranges) = self.take() {
                return ranges;
            }
            added.await;
        }
    }
}

impl RefusalQueue {
    /// Adds the tasks of a fact. Drops the ranges of earlier rounds, because those rounds have
    /// ended.
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
            tracing::debug!(%job, "more ranges of tasks were refused than are kept; the producer will ask the sink for missing tasks");
        }
        self.added.notify_waiters();
    }

    fn pending(&self) -> MutexGuard<'_, PendingRanges> {
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
    async fn refused_ranges_join_and_drain_once() {
        let tasks = RefusedTasks::default();
        let add = async {
            tasks.queue().add(&refused(0, &[(4, 2), (0, 3)]));
            tasks.queue().add(&refused(0, &[(3, 1), (9, 1), (7, 0)]));
        };
        let (ranges, ()) = tokio::join!(tasks.next(), add);
        assert_eq!(
            ranges,
            RefusedRanges { round: Round(0), ranges: vec![0..6, 9..10], is_incomplete: false }
        );
        assert_eq!(tasks.take(), None);
    }

    #[test]
    fn later_round_replaces_ranges() {
        let tasks = RefusedTasks::default();
        tasks.queue().add(&refused(0, &[(0, 3)]));
        tasks.queue().add(&refused(1, &[(5, 1), (7, 1)]));
        tasks.queue().add(&refused(0, &[(8, 1)]));
        let later = RefusedRanges { round: Round(1), ranges: vec![5..6, 7..8], is_incomplete: false };
        assert_eq!(tasks.take(), Some(later));
    }

    #[test]
    fn refused_ranges_are_bounded() {
        let tasks = RefusedTasks::default();
        let many: Vec<_> = (0..=REFUSED_MAX_RANGES as u64).map(|place| (2 * place, 1)).collect();
        tasks.queue().add(&refused(0, &many));
        let taken = tasks.take().unwrap();
        assert_eq!((taken.ranges.len(), taken.is_incomplete), (REFUSED_MAX_RANGES, true));
        // Neighbours become one range, in any order of arrival.
        for index in (0..=3 * REFUSED_MAX_RANGES as u64).rev() {
            tasks.queue().add(&refused(0, &[(index, 1)]));
        }
        let taken = tasks.take().unwrap();
        assert_eq!((taken.ranges.len(), taken.is_incomplete), (1, false));
    }
}
