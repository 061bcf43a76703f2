//! Which tasks have no outcome, and what is said when none comes any more.

use gristmill_shared::{
    TaskIndex, Topic,
    wire::{MISSING_MAX_RANGES, Missing},
};

use super::{Job, Phase};
use crate::engine::Outbox;

impl Job {
    /// The tasks from `from` on that have no outcome, of those that are known: below the total, or the highest that has
    /// one. Of a job that has ended none is missing.
    pub(crate) fn missing(&self, from: TaskIndex) -> Missing {
        let (job, round) = (self.record.opened.job, self.record.round);
        let (ranges, tasks) = match &self.phase {
            Phase::Running(work) => {
                let end = self.record.total().unwrap_or(self.record.counts.reached);
                work.missing(from.0.min(end)..end, MISSING_MAX_RANGES)
            }
            Phase::Ended(_) => (Vec::new(), 0),
        };
        let ranges = ranges.into_iter().map(|range| (TaskIndex(range.start), range.end - range.start));
        let version = self.record.version;
        Missing { job, round, since_ms: None, from, ranges: ranges.collect(), tasks, version }
    }

    /// No outcome has come since then: notes it, and tells everybody. Answers what is to be told to those who listen,
    /// or nothing if the job has ended.
    pub(crate) fn stall(&mut self, since_ms: u64, outbox: &mut Outbox) -> Option<(Topic, Missing)> {
        if self.has_ended() {
            return None;
        }
        let missing = Missing { since_ms: Some(since_ms), ..self.missing(TaskIndex(0)) };
        (self.record.stalled_ms, self.changed) = (Some(since_ms), true);
        outbox.fact(&missing);
        let (job, tasks, sealed) = (missing.job, missing.tasks, self.record.seal.is_some());
        tracing::warn!(
            %job, missing = tasks, sealed,
            "the job stalls: no outcome for a while (hint: are workers running? tasks may be long, or wait for their \
             next try; if messages were lost, `producer resume {job} --missing` sends the missing tasks again)"
        );
        Some((Topic::Job(self.record.opened.lane.clone(), job), missing))
    }

    /// Outcomes come: if the job stalled, it does so no more.
    pub(super) fn goes_on(&mut self) {
        if self.record.stalled_ms.take().is_some() {
            tracing::info!(job = %self.record.opened.job, "outcomes come again: the job stalls no more");
        }
    }
}
