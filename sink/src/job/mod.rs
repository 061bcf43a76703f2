//! One job as the sink has it in memory. Every change happens here first, and is in the ledger with the next commit.

mod end;
mod lifecycle;
mod missing;
mod outcomes;
mod reopen;
mod storage;
mod work;

use std::time::Duration;

use gristmill_shared::{JobId, Topic, wire::Progress};

use crate::ledger::{Counts, Record};
use work::Work;

/// A job that something was received for since the last commit, or that is running.
#[derive(Debug)]
pub(crate) struct Job {
    record: Record,
    phase: Phase,
    /// The counts as they are in the ledger.
    saved: Counts,
    /// The job's number in the ledger, once it is there.
    seq: Option<i64>,
    changed: bool,
    /// Whether it ran when it was opened or loaded, so that its progress is news.
    moves: bool,
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

    /// What its tasks take, on the average.
    pub(crate) fn mean_time(&self) -> Duration {
        self.record.counts.mean_time()
    }

    /// How far it is, and whom that is for; nothing if it had ended before.
    pub(crate) fn news(&self) -> Option<(Topic, Progress)> {
        let topic = Topic::Job(self.record.opened.lane.clone(), self.record.opened.job);
        self.moves.then(|| (topic, self.record.progress()))
    }

    /// Reads the counts off the work.
    fn recount(&mut self) {
        if let Phase::Running(work) | Phase::Ended(Some(work)) = &self.phase {
            let counts = &mut self.record.counts;
            (counts.done, counts.failed, counts.reached) = work.counts();
        }
    }
}
