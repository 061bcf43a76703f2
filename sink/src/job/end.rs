//! How a job ends.

use std::mem;

use gristmill_shared::{
    Conclusion, FailFast, Round,
    wire::{Finished, Opened, Stopped, now_ms},
};

use super::{Job, Phase, findings::Findings, work::Broken};
use crate::{
    clerk::Outbox,
    ledger::{End, JobState},
};

/// The longest conclusion that the journal carries. A longer one is in the ledger only.
const CONCLUSION_MAX_BYTES: usize = 1 << 20;

/// Why a job ends.
#[derive(Debug)]
enum Ending {
    /// Every task has an outcome.
    Complete,
    /// `collect` needs no more.
    Answered,
    /// Somebody, or its policy, wants no more of it.
    Stopped(String),
    /// It cannot go on.
    Failed(String),
}

impl Ending {
    fn state(&self) -> JobState {
        match self {
            Self::Complete => JobState::Finished,
            Self::Answered | Self::Stopped(_) => JobState::Stopped,
            Self::Failed(_) => JobState::Failed,
        }
    }

    fn why(&self) -> Option<String> {
        match self {
            Self::Complete => None,
            Self::Answered => Some("the job has its answer".into()),
            Self::Stopped(why) | Self::Failed(why) => Some(why.clone()),
        }
    }

    /// What the user reads: an end that the job did not choose gives no answer, whatever its report says so far.
    fn conclusion(&self, said: Option<Conclusion>) -> Conclusion {
        match (self, said) {
            (Self::Complete | Self::Answered, Some(said)) => said,
            (_, None) => Conclusion::no_answer(self.why().unwrap_or_default()),
            (Self::Stopped(why) | Self::Failed(why), Some(said)) => {
                Conclusion::no_answer(format!("{why}; so far: {}", said.text))
            }
        }
    }
}

impl Job {
    /// Ends the job if every task has an outcome, or too many of them failed.
    pub(super) fn end_if_due(&mut self, outbox: &mut Outbox) {
        let failed = self.record.counts.failed;
        if self.has_ended() {
        } else if self.all_tasks_are_known() && self.record.without_outcome() == 0 {
            self.end(Ending::Complete, outbox);
        } else if let Some(limit) = self.failures_reached() {
            let tasks = if failed == 1 { "task" } else { "tasks" };
            let why = format!("{failed} {tasks} failed, and the job was to end at {limit} (--fail-fast)");
            self.end(Ending::Stopped(why), outbox);
        }
    }

    /// Whether there are no tasks but those below the total. A job that had its answer with the last of its planned tasks
    /// ended without a seal; when it is reopened none need come, since its producer has heard of the end.
    fn all_tasks_are_known(&self) -> bool {
        self.record.seal.is_some() || self.record.round > Round(0)
    }

    /// The number or share of failures at which the job is to end, if there are so many.
    fn failures_reached(&self) -> Option<FailFast> {
        let failed = self.record.counts.failed;
        self.record.opened.policy.fail_fast.filter(|limit| match (limit, self.record.total()) {
            (FailFast::Tasks(limit), _) => failed >= (*limit).max(1),
            (FailFast::Percent(percent), Some(total)) => {
                failed > 0 && u128::from(failed) * 100 >= u128::from(total) * u128::from(*percent)
            }
            (FailFast::Percent(_), None) => false,
        })
    }

    /// `collect` said that it needs no more.
    pub(super) fn answered(&mut self, outbox: &mut Outbox) {
        self.recount();
        let complete = self.record.total().is_some() && self.record.without_outcome() == 0;
        self.end(if complete { Ending::Complete } else { Ending::Answered }, outbox);
    }

    /// Somebody or something outside ends the job.
    pub(super) fn stop(&mut self, why: String, outbox: &mut Outbox) {
        self.end(Ending::Stopped(why), outbox);
    }

    /// The job cannot go on; what was folded is right.
    pub(super) fn fail_job(&mut self, why: String, outbox: &mut Outbox) {
        self.end(Ending::Failed(why), outbox);
    }

    /// The job's own code failed, so that what was folded since the last commit is not to be trusted: the job ends as
    /// the ledger has it. Outcomes that are lost by that count as late.
    pub(super) fn break_down(&mut self, why: &str, outbox: &mut Outbox) {
        self.recount();
        let (saved, counts) = (self.saved, &mut self.record.counts);
        counts.late += (counts.done + counts.failed).saturating_sub(saved.done + saved.failed);
        (counts.done, counts.failed, counts.reached) = (saved.done, saved.failed, saved.reached);
        self.phase = Phase::Ended(None);
        self.close(&Ending::Failed(why.into()), outbox);
    }

    fn end(&mut self, ending: Ending, outbox: &mut Outbox) {
        self.recount();
        let Phase::Running(work) = &mut self.phase else { return };
        if let Err(Broken(why)) = work.prepare() {
            return self.break_down(&why, outbox);
        }
        self.phase = match mem::replace(&mut self.phase, Phase::Ended(None)) {
            Phase::Running(work) => Phase::Ended(Some(work)),
            ended @ Phase::Ended(_) => ended,
        };
        self.close(&ending, outbox);
    }

    fn close(&mut self, ending: &Ending, outbox: &mut Outbox) {
        let skipped = self.record.without_outcome();
        let conclusion = ending.conclusion(None);
        let end = End { state: ending.state(), stopped: ending.why(), skipped, conclusion, at_ms: now_ms() };
        (self.record.end, self.record.stalled_ms) = (Some(end), None);
        let account = self.record.account();
        if let (Phase::Ended(Some(work)), Some(end)) = (&self.phase, &mut self.record.end) {
            end.conclusion = ending.conclusion(Some(work.conclude(&account)));
        }
        self.changed = true;
        let findings = match &self.phase {
            Phase::Ended(Some(work)) => work.findings(outbox.report_max_bytes()),
            Phase::Ended(None) | Phase::Running(_) => Findings::default(),
        };
        self.announce_end(findings, outbox);
        if let Some(End { state, stopped, .. }) = &self.record.end {
            let Opened { job, kind, .. } = &self.record.opened;
            tracing::info!(%job, %kind, %state, stopped, "job ended");
        }
    }

    /// Tells everybody: first that the rest is not needed, then what it came to.
    pub(super) fn announce_end(&self, findings: Findings, outbox: &mut Outbox) {
        let (Some(end), opened) = (&self.record.end, &self.record.opened) else { return };
        let (job, round) = (opened.job, self.record.round);
        if let Some(why) = &end.stopped {
            outbox.fact(&Stopped { job, round, reason: why.clone() });
        }
        let mut conclusion = end.conclusion.clone();
        if conclusion.text.len() > CONCLUSION_MAX_BYTES {
            let size = conclusion.text.len();
            conclusion = Conclusion::no_answer(format!(
                "the answer takes {size} bytes, more than the {CONCLUSION_MAX_BYTES} that the journal carries \
                 (hint: it is in the ledger; see `sink show {job}`)"
            ));
        }
        let (account, kind) = (self.record.account(), opened.kind.clone());
        let Findings { report, report_bytes, failures } = findings;
        outbox.fact(&Finished { job, kind, round, account, conclusion, report, report_bytes, failures });
    }
}
