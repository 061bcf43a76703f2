//! Tasks without an outcome, and stalls of the job.

use gristmill_shared::{
    TaskIndex, Topic,
    wire::{MISSING_MAX_RANGES, Missing},
};

use super::{ActiveJob, JobPhase};
use crate::outbox::Outbox;

impl ActiveJob {
    /// Returns the known tasks from `from` on that have no outcome: those below the total, or below
    /// the highest index with an outcome. A job that has ended has none.
    pub(crate) fn missing_tasks(&self, from: TaskIndex) -> Missing {
        let (job, round) = (self.record.opened.job, self.record.round);
        let (ranges, tasks) = match &self.phase {
            JobPhase::Running(fold_state) => {
                let end = self.record.total().unwrap_or(self.record.counts.reached);
                fold_state.missing(from.0.min(end)..end, MISSING_MAX_RANGES)
            }
            JobPhase::Ended(_) => (Vec::new(), 0),
        };
        let ranges = ranges.into_iter().map(|range| (TaskIndex(range.start), range.end - range.start));
        let version = self.record.version;
        Missing { job, round, since_ms: None, from, ranges: ranges.collect(), tasks, version }
    }

    /// Marks the job as stalled since the time of its last outcome, and publishes a fact. Returns
    /// the event to publish after the commit, or `None` if the job has ended.
    pub(crate) fn mark_stalled(&mut self, since_ms: u64, outbox: &mut Outbox) -> Option<(Topic, Missing)> {
        if self.has_ended() {
            return None;
        }
        let missing = Missing { since_ms: Some(since_ms), ..self.missing_tasks(TaskIndex(0)) };
        (self.record.stalled_ms, self.changed) = (Some(since_ms), true);
        outbox.push_fact(&missing);
        let (job, tasks, sealed) = (missing.job, missing.tasks, self.record.seal.is_some());
        tracing::warn!(
            %job, missing = tasks, sealed,
            "the job stalls: no outcome for a while (hint: are workers running? tasks may be long, or wait for their \
             next try; if messages were lost, `producer resume {job} --missing` sends the missing tasks again)"
        );
        Some((Topic::Job(self.record.opened.lane.clone(), job), missing))
    }

    /// Ends a stall, if there is one, since outcomes have arrived.
    pub(super) fn clear_stall(&mut self) {
        if self.record.stalled_ms.take().is_some() {
            tracing::info!(job = %self.record.opened.job, "outcomes arrive again: the job no longer stalls");
        }
    }
}
