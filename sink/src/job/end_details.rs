//! The part of a job's end beside its account: the report, and some of the failures.

use gristmill_ledger::Ledger;
use gristmill_shared::{
    TaskIndex,
    wire::{FAILURE_NOTE_MAX_BYTES, FINISHED_MAX_FAILURES, FailureNote, clip_text},
};
use serde_json::value::RawValue;

use super::{ActiveJob, JobPhase};
use crate::SinkError;

/// The report of a job that has ended, and some of its failures, as the journal carries them.
#[derive(Debug, Default)]
pub(crate) struct EndDetails {
    pub(super) report: Option<Box<RawValue>>,
    /// The size of a report that is too large, in bytes.
    pub(super) report_bytes: Option<u64>,
    /// Ascending, at most [`FINISHED_MAX_FAILURES`].
    pub(super) failures: Vec<FailureNote>,
}

impl EndDetails {
    /// Copies a report of at most `max_bytes`. A larger one is replaced by its size.
    pub(super) fn new(report: Option<&RawValue>, max_bytes: usize, failures: Vec<FailureNote>) -> Self {
        let (fits, too_large): (Option<&RawValue>, Option<&RawValue>) = match report {
            Some(report) if report.get().len() > max_bytes => (None, Some(report)),
            report => (report, None),
        };
        Self {
            report: fits.map(ToOwned::to_owned),
            report_bytes: too_large.map(|report| report.get().len() as u64),
            failures,
        }
    }
}

impl ActiveJob {
    /// Returns the details of a job that has ended, from memory or from the ledger. A running job
    /// has none.
    pub(crate) fn end_details(
        &self,
        ledger: &mut dyn Ledger,
        max_bytes: usize,
    ) -> Result<EndDetails, SinkError> {
        let key = match (&self.phase, self.key) {
            (JobPhase::Ended(Some(fold_state)), _) => return Ok(fold_state.end_details(max_bytes)),
            (JobPhase::Ended(None), Some(key)) => key,
            (JobPhase::Ended(None), None) | (JobPhase::Running(_), _) => return Ok(EndDetails::default()),
        };
        let failures = ledger.reasons(key, FINISHED_MAX_FAILURES)?;
        let failures = failures.into_iter().map(|(index, reason)| failure_note(index, &reason));
        Ok(EndDetails::new(ledger.report(key)?.as_deref(), max_bytes, failures.collect()))
    }
}

/// Returns a failure, cut to the size that a fact carries.
pub(super) fn failure_note(index: u64, reason: &str) -> FailureNote {
    let reason = clip_text(reason, FAILURE_NOTE_MAX_BYTES).into_owned();
    FailureNote { index: TaskIndex(index), reason }
}
