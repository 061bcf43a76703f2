//! One job in the sink's memory. Every change is made here first, and is in the ledger after the
//! next commit.

mod builds;
mod completion;
mod end_details;
mod fold_state;
mod folding;
mod lifecycle;
mod missing_tasks;
mod ordered_outputs;
mod refusal;
mod reopen;
mod storage;

use std::{
    mem,
    time::{Duration, Instant},
};

use gristmill_ledger::{JobKey, JobRecord, JobState, OutcomeCounts};
use gristmill_shared::{
    JobId, Kind, Registry, Topic,
    metrics::{SINK_IGNORED, SINK_OUTCOMES},
    wire::Progress,
};

use builds::Builds;
use completion::EndReason;
use fold_state::FoldState;
use refusal::PendingRefusal;

/// A job in memory: one that runs, or that has changed since the last commit.
#[derive(Debug)]
pub(crate) struct ActiveJob {
    record: JobRecord,
    phase: JobPhase,
    /// The builds that worked on the job.
    builds: Builds,
    /// Refused tasks that are not published yet.
    refused: Option<PendingRefusal>,
    /// The counts in the ledger.
    saved: OutcomeCounts,
    /// The counts that the metrics include.
    reported: OutcomeCounts,
    /// The job's key in the ledger, once it is there.
    key: Option<JobKey>,
    changed: bool,
    /// The end of the job, pending until all outputs are folded in order before the next commit.
    pending_end: Option<EndReason>,
    /// True if the job was running when it was opened or loaded, so that its progress is published.
    was_running: bool,
    /// The time at which the job was loaded or opened.
    since: Instant,
}

#[derive(Debug)]
enum JobPhase {
    Running(Box<FoldState>),
    /// Ended, with the part of its state that is still to be saved.
    Ended(Option<Box<FoldState>>),
}

impl ActiveJob {
    pub(crate) fn id(&self) -> JobId {
        self.record.opened.job
    }

    /// True if the job has ended. It need not stay in memory after a commit then.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, JobPhase::Ended(_))
    }

    /// True if there is something to save.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Returns the time since which the job has been in memory: usually as long as it runs, or
    /// since the sink started.
    pub(crate) fn in_memory_since(&self) -> Instant {
        self.since
    }

    /// Returns the mean time of a task.
    pub(crate) fn mean_time(&self) -> Duration {
        self.record.counts.mean_time()
    }

    /// Returns the progress and its topic, or `None` if the job had ended before it was loaded.
    pub(crate) fn progress(&self) -> Option<(Topic, Progress)> {
        let topic = Topic::Job(self.record.opened.lane.clone(), self.record.opened.job);
        self.was_running.then(|| (topic, self.record.progress()))
    }

    /// Returns the kind of the job.
    pub(crate) fn kind(&self) -> &Kind {
        &self.record.opened.kind
    }

    /// Returns the state of the job.
    pub(crate) fn state(&self) -> JobState {
        self.record.state()
    }

    /// Adds what the last commit changed to the metrics. Called after a commit.
    pub(crate) fn record_metrics(&mut self, registry: &Registry) {
        let (now, kind) = (self.record.counts, registry.metric_label(&self.record.opened.kind));
        let before = mem::replace(&mut self.reported, now);
        SINK_OUTCOMES.add([kind, "done"], now.done.saturating_sub(before.done));
        SINK_OUTCOMES.add([kind, "failed"], now.failed.saturating_sub(before.failed));
        SINK_IGNORED.add(["duplicate"], now.duplicates.saturating_sub(before.duplicates));
        SINK_IGNORED.add(["late"], now.late.saturating_sub(before.late));
    }

    /// Updates the record's counts from the fold state.
    fn refresh_counts(&mut self) {
        if let JobPhase::Running(fold_state) | JobPhase::Ended(Some(fold_state)) = &self.phase {
            let counts = &mut self.record.counts;
            (counts.done, counts.failed, counts.reached) = fold_state.counts();
        }
    }
}
