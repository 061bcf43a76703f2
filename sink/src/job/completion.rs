//! How a job ends.

use std::mem;

use gristmill_shared::{
    Conclusion, FailFast, Round,
    wire::{BuildShare, Finished, Opened, Stopped, now_ms},
};

use rusqlite::Transaction;

use super::{Job, Phase, end_details::Findings, fold_state::Broken};
use crate::{
    engine::Outbox,
    ledger::{End, JobState},
};

/// The longest conclusion that the journal carries. A longer one is in the ledger only.
const CONCLUSION_MAX_BYTES: usize = 1 << 20;

/// The reason of a stop that `collect` ordered.
const HAS_ITS_ANSWER: &str = "the job has its answer";

/// Why a job ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// Every task has an outcome.
    Complete,
    /// `collect` needs no more.
    Answered,
    /// `collect` needs no more, and there is no more.
    AnsweredLast,
    /// Somebody, or its policy, wants no more of it.
    Stopped(String),
    /// It cannot go on.
    Failed(String),
}

impl Ending {
    fn state(&self) -> JobState {
        match self {
            Self::Complete | Self::AnsweredLast => JobState::Finished,
            Self::Answered | Self::Stopped(_) => JobState::Stopped,
            Self::Failed(_) => JobState::Failed,
        }
    }

    fn why(&self) -> Option<String> {
        match self {
            Self::Complete | Self::AnsweredLast => None,
            Self::Answered => Some(HAS_ITS_ANSWER.into()),
            Self::Stopped(why) | Self::Failed(why) => Some(why.clone()),
        }
    }

    /// What the user reads: an end that the job did not choose gives no answer, whatever its report says so far.
    fn conclusion(&self, said: Option<Conclusion>) -> Conclusion {
        match (self, said) {
            (Self::Complete | Self::Answered | Self::AnsweredLast, Some(said)) => said,
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
        self.end(if complete { Ending::AnsweredLast } else { Ending::Answered }, outbox);
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
        self.builds.discard_fresh();
        (counts.done, counts.failed, counts.reached) = (saved.done, saved.failed, saved.reached);
        self.phase = Phase::Ended(None);
        self.close(Ending::Failed(why.into()), outbox);
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
        self.close(ending, outbox);
    }

    fn close(&mut self, ending: Ending, outbox: &mut Outbox) {
        let skipped = self.record.without_outcome();
        let conclusion = ending.conclusion(None);
        let end = End { state: ending.state(), stopped: ending.why(), skipped, conclusion, at_ms: now_ms() };
        (self.record.end, self.record.stalled_ms) = (Some(end), None);
        self.changed = true;
        if matches!(&self.phase, Phase::Ended(Some(work)) if work.folds_in_order()) {
            self.unconcluded = Some(ending); // its last outputs are not in the ledger yet
        } else {
            self.conclude(&ending, outbox);
        }
    }

    /// Makes the report of a job that folds its outputs in order, and concludes it, in the
    /// transaction that saves its last outputs.
    pub(super) fn conclude_in_order(
        &mut self,
        transaction: &Transaction<'_>,
        seq: i64,
        mut ending: Ending,
        outbox: &mut Outbox,
    ) -> rusqlite::Result<()> {
        if let Phase::Ended(Some(work)) = &mut self.phase
            && let Err(Broken(why)) = work.fold_in_order(transaction, seq)?
        {
            ending = Ending::Failed(why);
            if let Some(end) = &mut self.record.end {
                (end.state, end.stopped) = (ending.state(), ending.why());
            }
        }
        self.conclude(&ending, outbox);
        Ok(())
    }

    fn conclude(&mut self, ending: &Ending, outbox: &mut Outbox) {
        let mut account = self.record.account();
        if let Ending::AnsweredLast = ending {
            // An answer does not depend on which of the other tasks came before it, and failed.
            account.stopped = Some(HAS_ITS_ANSWER.into());
        }
        if let (Phase::Ended(Some(work)), Some(end)) = (&self.phase, &mut self.record.end) {
            end.conclusion = ending.conclusion(Some(work.conclude(&account)));
        }
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
        let (Some(end), None) = (&self.record.end, &self.unconcluded) else { return };
        let opened = &self.record.opened;
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
        let (account, kind, builds) = (self.record.account(), opened.kind.clone(), self.builds_to_name());
        let Findings { report, report_bytes, failures } = findings;
        let finished =
            Finished { job, kind, round, account, conclusion, report, report_bytes, failures, builds };
        outbox.fact(&finished);
    }

    /// The builds that worked on the job, if there is more to say than that the submitter's did all
    /// of it.
    fn builds_to_name(&self) -> Vec<BuildShare> {
        let shares = self.builds.shares();
        let is_expected = |share: &BuildShare| share.refused == 0 && !self.is_foreign(share.build.as_ref());
        if shares.len() <= 1 && shares.iter().all(is_expected) { Vec::new() } else { shares }
    }
}
