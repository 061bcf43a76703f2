//! The proof that a job adds up, from the stored rows instead of the running counts.

use std::{collections::BTreeSet, fmt, ops::Range};

use gristmill_shared::{BuildId, JobId, wire::BuildShare};
use serde::Serialize;

use crate::{IndexSet, JobRecord, JobSnapshot, JobState, index_set::gaps};

/// Gaps that a verification lists; all are counted.
const GAPS_MAX: usize = 1_000;

/// The result of checking that every task of a job has exactly one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The job.
    pub job: JobId,
    /// The state of the job.
    pub state: JobState,
    /// True if the job has ended, has no gaps, and all stored data agrees.
    pub ok: bool,
    /// The number of tasks; unknown if the split was not finished and had no plan.
    pub total: Option<u64>,
    /// The minimum number of tasks that the split gave, if there is no total.
    pub reached: u64,
    /// Tasks with an output, counted in the bitmap.
    pub done: u64,
    /// Tasks that failed for good, counted in the table of failures.
    pub failed: u64,
    /// Tasks that the job's early end made unnecessary.
    pub skipped: u64,
    /// Repeated outcomes, which were ignored.
    pub duplicates: u64,
    /// Outcomes after the end, which were ignored.
    pub late: u64,
    /// Ranges of tasks that should have an outcome and have none, at most a thousand.
    pub gaps: Vec<Range<u64>>,
    /// The number of tasks that should have an outcome and have none.
    pub missing: u64,
    /// The contradictions that were found.
    pub problems: Vec<String>,
    /// The reason of an early end.
    pub stopped: Option<String>,
    /// The build that submitted the job, if known.
    pub build: Option<BuildId>,
    /// The builds that worked on the job, ordered by version and build.
    pub builds: Vec<BuildShare>,
}

impl fmt::Display for Verification {
    /// Formats one line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, failed, skipped, duplicates, late, missing, .. } = self;
        match self.total {
            Some(total) => write!(f, "{total} tasks: ")?,
            None => write!(f, "split not finished at {}: ", self.reached)?,
        }
        write!(f, "{done} done, {failed} failed, {skipped} skipped, {missing} without an outcome; ")?;
        write!(f, "{duplicates} duplicates and {late} late outcomes ignored")
    }
}

/// Checks one job by its stored rows.
pub(crate) fn verify(snapshot: JobSnapshot) -> Verification {
    let JobSnapshot { record, builds, done, failed, kept, .. } = snapshot;
    let kept = record.keeps_outputs.then_some(&kept[..]);
    Verification { builds, ..check(&record, &done, &failed, kept) }
}

fn check(
    record: &JobRecord,
    done: &IndexSet,
    failed: &BTreeSet<u64>,
    kept: Option<&[Range<u64>]>,
) -> Verification {
    let reached = done.end().max(failed.last().map_or(0, |last| last + 1));
    let total = record.total();
    let account = record.account();
    let mut problems = Vec::new();
    let mut differ = |what: &str, stored: u64, found: u64| {
        if stored != found {
            problems.push(format!("the ledger counts {stored} {what}, but has {found}"));
        }
    };
    differ("tasks done", account.done, done.len());
    differ("failures", account.failed, failed.len() as u64);
    if let Some(kept) = kept {
        differ("outputs to keep", done.len(), kept.iter().map(|range| range.end - range.start).sum());
        let once = kept.windows(2).all(|pair| pair[0].end <= pair[1].start);
        if !once || kept.iter().any(|range| !done.missing(range.start..range.end).is_empty()) {
            problems.push("the kept outputs are not those of the tasks done, each once".into());
        }
    }
    let both = failed.iter().filter(|index| done.contains(**index)).count();
    if both > 0 {
        problems.push(format!("{both} tasks are both done and failed"));
    }
    if let Some(total) = total.filter(|total| reached > *total) {
        problems.push(format!("there are {total} tasks, but task {} has an outcome", reached - 1));
    }

    let (mut gaps, open) = gaps(done, failed, 0..total.unwrap_or(reached), GAPS_MAX);
    let mut missing = open;
    if matches!(record.state(), JobState::Stopped | JobState::Failed) {
        // The job was ended early: tasks without an outcome are skipped.
        if account.skipped != open {
            problems.push(format!("the ledger counts {} tasks skipped, but {open} are", account.skipped));
        }
        gaps.clear();
        missing = 0;
    }
    Verification {
        job: record.opened.job,
        state: record.state(),
        ok: problems.is_empty() && missing == 0 && record.state() != JobState::Running,
        total,
        reached,
        done: done.len(),
        failed: failed.len() as u64,
        skipped: open - missing,
        duplicates: account.duplicates,
        late: account.late,
        gaps,
        missing,
        problems,
        stopped: account.stopped,
        build: record.opened.build.clone(),
        builds: Vec::new(),
    }
}
