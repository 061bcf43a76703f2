//! Throttled events about the progress of jobs and about stalls: frequent enough to look alive,
//! rare enough to cost nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, Topic,
    wire::{Event, Missing, Progress},
};

/// Minimum time between progress events of a moving job. Its end and each doubling of its outcomes
/// are published at once: producers size batches by the first measured outcomes. Doublings are
/// logarithmic in the number of outcomes, so these extra events are negligible.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Jobs whose last doubling is tracked. Beyond it the record is cleared, at the cost of one extra
/// event for each job.
const TRACKED_MAX_JOBS: usize = 1_000;

/// Events that wait for publication.
#[derive(Debug, Default)]
pub(super) struct ProgressThrottle {
    pending: BTreeMap<JobId, (Topic, Progress)>,
    /// The number of outcomes of each running job at its last doubling.
    announced: BTreeMap<JobId, u64>,
    /// Events that are due at once: first outcomes, ends and stalls.
    immediate: Vec<(Topic, Event)>,
    last_sent: Option<Instant>,
}

impl ProgressThrottle {
    /// Records committed progress of a job.
    pub(super) fn record(&mut self, (topic, progress): (Topic, Progress), ended: bool) {
        if ended {
            self.announced.remove(&progress.job);
        }
        if ended || self.has_doubled(&progress) {
            self.pending.remove(&progress.job);
            self.immediate.push((topic, Event::Progress(progress)));
        } else {
            self.pending.insert(progress.job, (topic, progress));
        }
    }

    /// True if the outcomes have doubled since this last returned true.
    fn has_doubled(&mut self, Progress { job, account, .. }: &Progress) -> bool {
        let outcomes = account.done.saturating_add(account.failed);
        let announced = self.announced.get(job).copied().unwrap_or_default();
        if outcomes == 0 || outcomes / 2 < announced {
            return false;
        }
        if self.announced.len() >= TRACKED_MAX_JOBS {
            self.announced.clear();
        }
        self.announced.insert(*job, outcomes);
        true
    }

    /// Records committed stalls of jobs.
    pub(super) fn record_stalls(&mut self, stalls: impl Iterator<Item = (Topic, Missing)>) {
        self.immediate.extend(stalls.map(|(topic, missing)| (topic, Event::Missing(missing))));
    }

    /// Returns when events are due.
    pub(super) fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        if !self.immediate.is_empty() {
            return Some(now);
        }
        (!self.pending.is_empty())
            .then(|| self.last_sent.map_or(now, |last_sent| last_sent + PROGRESS_INTERVAL))
    }

    /// Takes the events that are due now.
    pub(super) fn take(&mut self) -> Vec<(Topic, Event)> {
        let now = Instant::now();
        let mut events = std::mem::take(&mut self.immediate);
        if !events.is_empty() {
            self.last_sent.get_or_insert(now); // the first event starts the clock
        }
        if self.last_sent.is_none_or(|last_sent| now >= last_sent + PROGRESS_INTERVAL)
            && !self.pending.is_empty()
        {
            self.last_sent = Some(now);
            let pending = std::mem::take(&mut self.pending).into_values();
            events.extend(pending.map(|(topic, progress)| (topic, Event::Progress(progress))));
        }
        events
    }
}
