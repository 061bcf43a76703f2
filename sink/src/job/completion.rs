//! The end of a job.

use std::mem;

use gristmill_ledger::{JobEnd, JobState, Ledger};
use gristmill_shared::{
    Conclusion, FailFast, Round,
    wire::{BuildShare, Finished, Opened, Stopped, now_ms},
};

use super::{ActiveJob, JobPhase, end_details::EndDetails, fold_state::UserCodeError};
use crate::{SinkError, outbox::Outbox};

/// The longest conclusion that the journal carries, in bytes. A longer one is in the ledger only.
const CONCLUSION_MAX_BYTES: usize = 1 << 20;

/// The reason of a stop by `collect`.
const ANSWERED_REASON: &str = "the job has its answer";

/// The reason for which a job ends.
#[derive(Debug)]
pub(super) enum EndReason {
    /// Every task has an outcome.
    Complete,
    /// `collect` needs no more outcomes.
    Answered,
    /// `collect` needs no more outcomes, and every task has one.
    AnsweredLast,
    /// The user, or the job's policy, stopped it.
    Stopped(String),
    /// The job cannot continue.
    Failed(String),
}

impl EndReason {
    fn state(&self) -> JobState {
        match self {
            Self::Complete | Self::AnsweredLast => JobState::Finished,
            Self::Answered | Self::Stopped(_) => JobState::Stopped,
            Self::Failed(_) => JobState::Failed,
        }
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self::Complete | Self::AnsweredLast => None,
            Self::Answered => Some(ANSWERED_REASON.into()),
            Self::Stopped(why) | Self::Failed(why) => Some(why.clone()),
        }
    }

    /// Returns the conclusion for the user. A job that was stopped or failed has no answer,
    /// whatever its report says so far.
    fn conclusion(&self, said: Option<Conclusion>) -> Conclusion {
        match (self, said) {
            (Self::Complete | Self::Answered | Self::AnsweredLast, Some(said)) => said,
            (_, None) => Conclusion::no_answer(self.reason().unwrap_or_default()),
            (Self::Stopped(why) | Self::Failed(why), Some(said)) => {
                Conclusion::no_answer(format!("{why}; so far: {}", said.text))
            }
        }
    }
}

impl ActiveJob {
    /// Ends the job if every task has an outcome, or too many of them failed.
    pub(super) fn end_if_complete(&mut self, outbox: &mut Outbox) {
        let failed = self.record.counts.failed;
        if self.has_ended() {
        } else if self.all_tasks_are_known() && self.record.missing_count() == 0 {
            self.end(EndReason::Complete, outbox);
        } else if let Some(limit) = self.reached_limit() {
            let tasks = if failed == 1 { "task" } else { "tasks" };
            let why = format!("{failed} {tasks} failed, and the job was to end at {limit} (--fail-fast)");
            self.end(EndReason::Stopped(why), outbox);
        }
    }

    /// True if the total is final. A job that had its answer with the last of its planned tasks
    /// ended without a seal; after a reopening none follows, since its producer knows that it
    /// ended.
    fn all_tasks_are_known(&self) -> bool {
        self.record.seal.is_some() || self.record.round > Round(0)
    }

    /// Returns the number or share of failures at which the job is to end, if it is reached.
    fn reached_limit(&self) -> Option<FailFast> {
        let failed = self.record.counts.failed;
        self.record.opened.policy.fail_fast.filter(|limit| match (limit, self.record.total()) {
            (FailFast::Tasks(limit), _) => failed >= (*limit).max(1),
            (FailFast::Percent(percent), Some(total)) => {
                failed > 0 && u128::from(failed) * 100 >= u128::from(total) * u128::from(*percent)
            }
            (FailFast::Percent(_), None) => false,
        })
    }

    /// Ends the job because `collect` needs no more outcomes.
    pub(super) fn end_answered(&mut self, outbox: &mut Outbox) {
        self.refresh_counts();
        let complete = self.record.total().is_some() && self.record.missing_count() == 0;
        self.end(if complete { EndReason::AnsweredLast } else { EndReason::Answered }, outbox);
    }

    /// Stops the job, at the user's request.
    pub(super) fn stop(&mut self, why: String, outbox: &mut Outbox) {
        self.end(EndReason::Stopped(why), outbox);
    }

    /// Fails the job; the folded outcomes remain valid.
    pub(super) fn fail_job(&mut self, why: String, outbox: &mut Outbox) {
        self.end(EndReason::Failed(why), outbox);
    }

    /// Fails the job after an error of its own code. Outcomes folded since the last commit are
    /// discarded, and count as late.
    pub(super) fn discard_and_fail(&mut self, why: &str, outbox: &mut Outbox) {
        self.refresh_counts();
        let (saved, counts) = (self.saved, &mut self.record.counts);
        counts.late += (counts.done + counts.failed).saturating_sub(saved.done + saved.failed);
        self.builds.discard_fresh();
        (counts.done, counts.failed, counts.reached) = (saved.done, saved.failed, saved.reached);
        self.phase = JobPhase::Ended(None);
        self.close(EndReason::Failed(why.into()), outbox);
    }

    fn end(&mut self, ending: EndReason, outbox: &mut Outbox) {
        self.refresh_counts();
        let JobPhase::Running(fold_state) = &mut self.phase else { return };
        if let Err(UserCodeError(why)) = fold_state.encode_report() {
            return self.discard_and_fail(&why, outbox);
        }
        self.phase = match mem::replace(&mut self.phase, JobPhase::Ended(None)) {
            JobPhase::Running(fold_state) => JobPhase::Ended(Some(fold_state)),
            ended @ JobPhase::Ended(_) => ended,
        };
        self.close(ending, outbox);
    }

    fn close(&mut self, ending: EndReason, outbox: &mut Outbox) {
        let skipped = self.record.missing_count();
        let conclusion = ending.conclusion(None);
        let end =
            JobEnd { state: ending.state(), stopped: ending.reason(), skipped, conclusion, at_ms: now_ms() };
        (self.record.end, self.record.stalled_ms) = (Some(end), None);
        self.changed = true;
        if matches!(&self.phase, JobPhase::Ended(Some(fold_state)) if fold_state.folds_in_order()) {
            self.pending_end = Some(ending); // further outputs may still come before the commit
        } else {
            self.conclude(&ending, outbox);
        }
    }

    /// Builds the report of a job that folds its outputs in order, and concludes it. The commit
    /// that follows saves its last outputs and its end together.
    pub(super) fn conclude_in_order(
        &mut self,
        ledger: &mut dyn Ledger,
        mut ending: EndReason,
        outbox: &mut Outbox,
    ) -> Result<(), SinkError> {
        if let JobPhase::Ended(Some(fold_state)) = &mut self.phase
            && let Err(UserCodeError(why)) = fold_state.fold_in_order(ledger, self.key)?
        {
            ending = EndReason::Failed(why);
            if let Some(end) = &mut self.record.end {
                (end.state, end.stopped) = (ending.state(), ending.reason());
            }
        }
        self.conclude(&ending, outbox);
        Ok(())
    }

    fn conclude(&mut self, ending: &EndReason, outbox: &mut Outbox) {
        let mut account = self.record.account();
        if let EndReason::AnsweredLast = ending {
            // The answer must not depend on which other tasks came before it and failed.
            account.stopped = Some(ANSWERED_REASON.into());
        }
        if let (JobPhase::Ended(Some(fold_state)), Some(end)) = (&self.phase, &mut self.record.end) {
            end.conclusion = ending.conclusion(Some(fold_state.conclude(&account)));
        }
        let details = match &self.phase {
            JobPhase::Ended(Some(fold_state)) => fold_state.end_details(outbox.report_max_bytes()),
            JobPhase::Ended(None) | JobPhase::Running(_) => EndDetails::default(),
        };
        self.publish_end(details, outbox);
        if let Some(JobEnd { state, stopped, .. }) = &self.record.end {
            let Opened { job, kind, .. } = &self.record.opened;
            tracing::info!(%job, %kind, %state, stopped, "job ended");
        }
    }

    /// Publishes the end: first that no more tasks are needed, then the result.
    pub(super) fn publish_end(&self, details: EndDetails, outbox: &mut Outbox) {
        let (Some(end), None) = (&self.record.end, &self.pending_end) else { return };
        let opened = &self.record.opened;
        let (job, round) = (opened.job, self.record.round);
        if let Some(why) = &end.stopped {
            outbox.push_fact(&Stopped { job, round, reason: why.clone() });
        }
        let mut conclusion = end.conclusion.clone();
        if conclusion.text.len() > CONCLUSION_MAX_BYTES {
            let size = conclusion.text.len();
            conclusion = Conclusion::no_answer(format!(
                "the answer takes {size} bytes, more than the {CONCLUSION_MAX_BYTES} that the journal carries \
                 (hint: it is in the ledger; see `sink show {job}`)"
            ));
        }
        let (account, kind, builds) = (self.record.account(), opened.kind.clone(), self.notable_builds());
        let EndDetails { report, report_bytes, failures } = details;
        let finished =
            Finished { job, kind, round, account, conclusion, report, report_bytes, failures, builds };
        outbox.push_fact(&finished);
    }

    /// Returns the builds that worked on the job, unless it was the submitter's alone.
    fn notable_builds(&self) -> Vec<BuildShare> {
        let shares = self.builds.shares();
        let is_expected = |share: &BuildShare| share.refused == 0 && !self.is_foreign(share.build.as_ref());
        if shares.len() <= 1 && shares.iter().all(is_expected) { Vec::new() } else { shares }
    }
}
