//! Tasks whose outcomes a sink refused, gathered until their producer sends them again.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{Round, wire::Refused};

/// The most ranges that wait to be sent again. Further ones are not kept;
/// `producer resume --missing` finds them.
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
    ranges: Vec<Range<u64>>,
}

/// Tasks to be sent again in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRanges {
    /// The round in which they are sent.
    pub round: Round,
    /// Which tasks: ascending, disjoint, none empty; at least one range.
    pub ranges: Vec<Range<u64>>,
}

impl RefusedTasks {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Takes what has been refused so far, if there is anything.
    #[must_use]
    pub fn take(&self) -> Option<RefusedRanges> {
        let mut pending = self.0.pending();
        let mut ranges = std::mem::take(&mut pending.ranges);
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        (!joined.is_empty()).then_some(RefusedRanges { round: pending.round, ranges: joined })
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
            pending.round = *round;
        }
        if *round < pending.round {
            return;
        }
        for (first, tasks) in ranges {
            if pending.ranges.len() >= REFUSED_MAX_RANGES {
                tracing::warn!(
                    %job,
                    "more ranges of tasks were refused than can be sent again at once; the rest stays missing \
                     (hint: `producer resume {job} --missing` sends it)"
                );
                break;
            }
            if *tasks > 0 {
                pending.ranges.push(first.0..first.plus(*tasks).0);
            }
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
        assert_eq!(ranges, RefusedRanges { round: Round(0), ranges: vec![0..6, 9..10] });
        assert_eq!(tasks.take(), None);
    }

    #[test]
    fn a_later_round_replaces_earlier_ranges() {
        let tasks = RefusedTasks::default();
        tasks.shared().add(&refused(0, &[(0, 3)]));
        tasks.shared().add(&refused(1, &[(5, 1), (7, 1)]));
        tasks.shared().add(&refused(0, &[(8, 1)]));
        assert_eq!(tasks.take(), Some(RefusedRanges { round: Round(1), ranges: vec![5..6, 7..8] }));
    }

    #[test]
    fn refused_ranges_have_a_bound() {
        let tasks = RefusedTasks::default();
        let many: Vec<_> = (0..=REFUSED_MAX_RANGES as u64).map(|place| (2 * place, 1)).collect();
        tasks.shared().add(&refused(0, &many));
        assert_eq!(tasks.take().unwrap().ranges.len(), REFUSED_MAX_RANGES);
    }
}
