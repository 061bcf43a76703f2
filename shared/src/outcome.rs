//! The typed result of a job.

use std::collections::BTreeMap;

use crate::{Account, Conclusion, Job, TaskIndex, wire::Finished};

/// The result of a job that has ended.
///
/// The report lacks the tasks that [`account`](Self::account) does not count as done: it is partial
/// if tasks failed, or if the job was ended from outside. [`Outcome::into_answer`] gives the report
/// only if it is the answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome<R> {
    /// The report, folded from the outputs of all tasks that are done.
    pub report: R,
    /// The number of tasks with each kind of outcome.
    pub account: Account,
    /// The text for the user.
    pub conclusion: Conclusion,
    /// Tasks that failed for good, with the reason. A job over a broker, and `gristmill::run`,
    /// report the first [`FINISHED_MAX_FAILURES`](crate::wire::FINISHED_MAX_FAILURES); the account
    /// has the number of all failed tasks.
    pub failures: BTreeMap<TaskIndex, String>,
}

impl<R> Outcome<R> {
    /// True if the report is the answer: no task failed, and the job was not ended from outside.
    /// Programs of Gristmill exit with code 0 then.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.conclusion.answered && self.account.failed == 0
    }

    /// Returns the report if it is the answer.
    ///
    /// # Errors
    /// [`NoAnswer`] if tasks failed, the job was ended from outside, or the search found nothing.
    pub fn into_answer(self) -> Result<R, NoAnswer> {
        if self.is_answered() {
            return Ok(self.report);
        }
        let Self { account, conclusion, failures, .. } = self;
        Err(NoAnswer { account: Box::new(account), conclusion: conclusion.text, failures })
    }
}

/// The error for a job that ended without an answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the job has no answer, {} of its tasks failed: {}{}",
    .account.failed,
    .conclusion,
    first_failure(.failures)
)]
#[non_exhaustive]
pub struct NoAnswer {
    /// The number of tasks with each kind of outcome.
    pub account: Box<Account>,
    /// The text for the user.
    pub conclusion: String,
    /// Tasks that failed for good, with the reason, as in [`Outcome::failures`].
    pub failures: BTreeMap<TaskIndex, String>,
}

fn first_failure(failures: &BTreeMap<TaskIndex, String>) -> String {
    let first = failures.first_key_value();
    first.map_or_else(String::new, |(index, reason)| format!("; task {index}: {reason}"))
}

/// The error for a job that has ended and whose report is not available.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
#[non_exhaustive]
pub struct NoReport {
    /// The reason, and a hint.
    pub why: String,
    /// The end without its report.
    pub finished: Box<Finished>,
}

impl Finished {
    /// Reads the report as that of a job type.
    ///
    /// # Errors
    /// [`NoReport`] if the report is too large to travel, if there is none because the job's own
    /// code failed or an older sink published the end, or if it is the report of another kind.
    pub fn report<J: Job>(&self) -> Result<J::Report, NoReport> {
        let none = |why: String| NoReport { why, finished: Box::new(self.clone()) };
        let Self { job, kind, .. } = self;
        if kind.as_str() != J::KIND {
            return Err(none(format!(
                "job {job} is of kind {kind}, not {} (hint: name the job's own type)",
                J::KIND
            )));
        }
        match (&self.report, self.report_bytes) {
            (Some(report), _) => serde_json::from_str(report.get()).map_err(|error| {
                none(format!(
                    "the report of job {job} does not fit kind {kind}: {error} (hint: was the sink built with the \
                     same report type?)"
                ))
            }),
            (None, Some(bytes)) => Err(none(format!(
                "the report of job {job} takes {bytes} bytes, more than the journal carries (hint: `sink show {job} \
                 --json` prints it)"
            ))),
            (None, None) => Err(none(format!(
                "job {job} ended without a report: {} (hint: `sink show {job} --json` shows what the ledger has)",
                self.conclusion.text
            ))),
        }
    }

    /// Reads the end as that of a job type.
    ///
    /// # Errors
    /// The errors of [`Finished::report`].
    pub fn outcome<J: Job>(self) -> Result<Outcome<J::Report>, NoReport> {
        let report = self.report::<J>()?;
        let Self { account, conclusion, failures, .. } = self;
        let failures = failures.into_iter().map(|failure| (failure.index, failure.reason)).collect();
        Ok(Outcome { report, account, conclusion, failures })
    }
}
