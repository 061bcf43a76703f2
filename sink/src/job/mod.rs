//! One job as the sink has it in memory. Every change happens here first, and is in the ledger with the next commit.

mod completion;
mod end_details;
mod fold_state;
mod folding;
mod lifecycle;
mod missing_tasks;
mod refusal;
mod reopen;
mod storage;

use std::{
    mem,
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, Kind, Registry, Topic,
    meter::{SINK_IGNORED, SINK_OUTCOMES},
    wire::Progress,
};

use crate::ledger::{Counts, JobState, Record, builds::Builds};
use completion::Ending;
use fold_state::Work;
use refusal::Refusal;

/// A job that something was received for since the last commit, or that is running.
#[derive(Debug)]
pub(crate) struct Job {
    record: Record,
    phase: Phase,
    /// The builds that worked on it.
    builds: Builds,
    /// Tasks that were refused and not told of.
    refused: Option<Refusal>,
    /// The counts as they are in the ledger.
    saved: Counts,
    /// The counts that whoever watches has been told.
    counted: Counts,
    /// The job's number in the ledger, once it is there.
    seq: Option<i64>,
    changed: bool,
    /// The end that the job has come to, until the transaction that saves its last outputs folds
    /// them in order and concludes it.
    unconcluded: Option<Ending>,
    /// Whether it ran when it was opened or loaded, so that its progress is news.
    moves: bool,
    /// Since when it has been here.
    since: Instant,
}

#[derive(Debug)]
enum Phase {
    Running(Box<Work>),
    /// With what is still to be saved of its work.
    Ended(Option<Box<Work>>),
}

impl Job {
    pub(crate) fn id(&self) -> JobId {
        self.record.opened.job
    }

    /// Whether it has ended; then it need not be kept in memory after a commit.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Whether there is something to save.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Since when it has been in memory: as long as it runs, as a rule, or since the sink started.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// What its tasks take, on the average.
    pub(crate) fn mean_time(&self) -> Duration {
        self.record.counts.mean_time()
    }

    /// How far it is, and whom that is for; nothing if it had ended before.
    pub(crate) fn news(&self) -> Option<(Topic, Progress)> {
        let topic = Topic::Job(self.record.opened.lane.clone(), self.record.opened.job);
        self.moves.then(|| (topic, self.record.progress()))
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> &Kind {
        &self.record.opened.kind
    }

    /// How it ended, if it has.
    pub(crate) fn state(&self) -> JobState {
        self.record.state()
    }

    /// Counts, for whoever watches, what is in the ledger now and was not before. After a commit.
    pub(crate) fn count(&mut self, registry: &Registry) {
        let (now, kind) = (self.record.counts, registry.label(&self.record.opened.kind));
        let before = mem::replace(&mut self.counted, now);
        SINK_OUTCOMES.add([kind, "done"], now.done.saturating_sub(before.done));
        SINK_OUTCOMES.add([kind, "failed"], now.failed.saturating_sub(before.failed));
        SINK_IGNORED.add(["duplicate"], now.duplicates.saturating_sub(before.duplicates));
        SINK_IGNORED.add(["late"], now.late.saturating_sub(before.late));
    }

    /// Reads the counts off the work.
    fn recount(&mut self) {
        if let Phase::Running(work) | Phase::Ended(Some(work)) = &self.phase {
            let counts = &mut self.record.counts;
            (counts.done, counts.failed, counts.reached) = work.counts();
        }
    }
}
