//! One job without its outcomes.

use std::{fmt, str::FromStr, time::Duration};

use gristmill_shared::{
    Account, BuildId, Conclusion, InvalidName, Round,
    wire::{Opened, Progress, Sealed},
};
use serde::Serialize;

use crate::NUMBER_MAX;

/// One job in the ledger.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// The opening message of its producer.
    pub opened: Opened,
    /// True if outputs are kept beside the report.
    pub keeps_outputs: bool,
    /// The current round.
    pub round: Round,
    /// The version of the job's code in this round.
    pub version: u32,
    /// The seal of its producer, once the split is complete.
    pub seal: Option<Seal>,
    /// Running counts.
    pub counts: OutcomeCounts,
    /// The end of the job, once it has ended.
    pub end: Option<JobEnd>,
    /// The time of the last outcome if the job stalls, in milliseconds since 1970.
    pub stalled_ms: Option<u64>,
}

/// The number of tasks that the split gave, and their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The number of tasks.
    pub total: u64,
    /// Their digest.
    pub digest: String,
}

impl From<Sealed> for Seal {
    fn from(Sealed { job: _, total, digest }: Sealed) -> Self {
        Self { total, digest }
    }
}

/// Running counts of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutcomeCounts {
    /// Tasks with an output.
    pub done: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// One past the highest index that has an outcome.
    pub reached: u64,
    /// Repeated outcomes.
    pub duplicates: u64,
    /// Outcomes after the end, or that the end made void.
    pub late: u64,
    /// Total time of the tasks, in microseconds of one slot.
    pub busy_us: u64,
}

impl OutcomeCounts {
    /// Returns the number of tasks with an outcome.
    #[must_use]
    pub fn outcomes(&self) -> u64 {
        self.done + self.failed
    }

    /// Returns the mean time of a task, or zero if it is unknown.
    #[must_use]
    pub fn mean_time(&self) -> Duration {
        Duration::from_micros(self.busy_us.checked_div(self.outcomes()).unwrap_or(0))
    }
}

/// The end of a job.
#[derive(Debug, Clone)]
pub struct JobEnd {
    /// The state in which it ended.
    pub state: JobState,
    /// The reason of an early end.
    pub stopped: Option<String>,
    /// Tasks that the end made unnecessary.
    pub skipped: u64,
    /// The conclusion for the user.
    pub conclusion: Conclusion,
    /// The time of the end, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Outcomes are missing.
    Running,
    /// Every task has an outcome.
    Finished,
    /// Ended early as intended: it has its answer, or was stopped.
    Stopped,
    /// Could not continue: the split failed, or the job's own code did.
    Failed,
}

impl JobState {
    const ALL: [Self; 4] = [Self::Running, Self::Finished, Self::Stopped, Self::Failed];

    /// Returns the name of the state.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| InvalidName {
            what: "state of a job",
            got: text.into(),
            expected: "running, finished, stopped or failed",
        })
    }
}

impl JobRecord {
    /// Creates the record of a job that was just opened.
    #[must_use]
    pub fn new(opened: Opened, keeps_outputs: bool) -> Self {
        let (round, version, counts) = (Round(0), opened.version, OutcomeCounts::default());
        Self { opened, keeps_outputs, round, version, seal: None, counts, end: None, stalled_ms: None }
    }

    /// Returns the state of the job.
    #[must_use]
    pub fn state(&self) -> JobState {
        self.end.as_ref().map_or(JobState::Running, |end| end.state)
    }

    /// Returns the build that the round is bound to, if the submitter asked for that and the round
    /// still has its version.
    #[must_use]
    pub fn bound_build(&self) -> Option<&BuildId> {
        let is_bound = self.opened.policy.same_build && self.version == self.opened.version;
        self.opened.build.as_ref().filter(|_| is_bound)
    }

    /// Returns the number of tasks: as sealed, or as planned while the split continues.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.seal.as_ref().map(|seal| seal.total).or(self.opened.plan.tasks)
    }

    /// Returns the exclusive upper bound of all indices that may have an outcome.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.total().unwrap_or(NUMBER_MAX)
    }

    /// Returns the number of known tasks without an outcome.
    #[must_use]
    pub fn missing_count(&self) -> u64 {
        let OutcomeCounts { done, failed, reached, .. } = self.counts;
        self.total().unwrap_or(reached).saturating_sub(done + failed)
    }

    /// Returns the account of the job.
    #[must_use]
    pub fn account(&self) -> Account {
        let OutcomeCounts { done, failed, duplicates, late, .. } = self.counts;
        let end = self.end.as_ref();
        Account {
            total: self.total(),
            done,
            failed,
            skipped: end.map_or(0, |end| end.skipped),
            duplicates,
            late,
            stopped: end.and_then(|end| end.stopped.clone()),
        }
    }

    /// Returns the progress of the job, as an event tells it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            job: self.opened.job,
            account: self.account(),
            sealed: self.seal.is_some(),
            busy_us: self.counts.busy_us,
        }
    }
}
