//! The state of a running job: the tasks with an outcome, the report, and the changes that are not
//! in the ledger yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use gristmill_shared::{
    Account, AnyFold, AnyJob, CollectError, Collected, Conclusion, Keep, panic_text,
    wire::{FINISHED_MAX_FAILURES, Malformed, OutputRun},
};
use rusqlite::Transaction;
use serde_json::value::RawValue;

use super::end_details::{EndDetails, failure_note};
use crate::{
    index_set::{IndexSet, gaps},
    ledger::{
        ordered_outputs,
        outcome_rows::{self, KeptOutputs, StoredFailure, TaskSet},
    },
};

/// The outcomes of a running job, and its report.
#[derive(Debug)]
pub(super) struct FoldState {
    fold: Box<dyn AnyFold>,
    done: IndexSet,
    failed: BTreeSet<u64>,
    /// Tasks of which an outcome was refused; some may have another one by now.
    refused: IndexSet,
    keep: Keep,
    folds_in_order: bool,
    /// The report in the ledger.
    saved_report: Option<Box<RawValue>>,
    /// The report to save, if it changed.
    report: Option<Box<RawValue>>,
    folded: bool,
    /// Changes of the failures table; `None` deletes a failure.
    failures: BTreeMap<u64, Option<StoredFailure>>,
    outputs: Vec<KeptOutputs>,
    /// Reasons of failed tasks: those of the lowest known indices, at most
    /// [`FINISHED_MAX_FAILURES`].
    reasons: BTreeMap<u64, String>,
}

/// The outcomes of a job in the ledger.
#[derive(Debug, Default)]
pub(super) struct SavedOutcomes {
    pub(super) done: IndexSet,
    pub(super) failed: BTreeSet<u64>,
    pub(super) refused: IndexSet,
}

/// An error or panic of the job's own code. Outcomes folded since the last commit cannot be
/// trusted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UserCodeError(pub(super) String);

/// The new outcomes of a span.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FoldedSpan {
    /// Outcomes that count.
    pub(super) fresh: u64,
    /// Outcomes that were there already.
    pub(super) duplicates: u64,
    /// Outcomes after the one that ended the job.
    pub(super) late: u64,
    /// True if the job needs no more outcomes.
    pub(super) broke: bool,
    /// Outputs that do not decode, with the error.
    pub(super) undecodable: Vec<(u64, String)>,
}

impl FoldState {
    /// Creates the state of a new job.
    pub(super) fn new(job: Arc<dyn AnyJob>, keep: Keep) -> Result<Self, UserCodeError> {
        Self::resume(job, keep, None, SavedOutcomes::default())
    }

    /// Restores the state of a job from the ledger.
    pub(super) fn resume(
        job: Arc<dyn AnyJob>,
        keep: Keep,
        report: Option<Box<RawValue>>,
        SavedOutcomes { done, failed, refused }: SavedOutcomes,
    ) -> Result<Self, UserCodeError> {
        let folds_in_order = job.folds_in_order();
        let fold = catch_panic("the report", || job.fold(report.as_deref()))?;
        let fold = fold.map_err(|error| UserCodeError(error.to_string()))?;
        Ok(Self {
            fold,
            done,
            failed,
            refused,
            keep,
            folds_in_order,
            saved_report: report,
            report: None,
            folded: false,
            failures: BTreeMap::new(),
            outputs: Vec::new(),
            reasons: BTreeMap::new(),
        })
    }

    /// Adds the reasons of the first failed tasks.
    pub(super) fn with_reasons(self, reasons: Vec<(u64, String)>) -> Self {
        Self { reasons: reasons.into_iter().collect(), ..self }
    }

    /// Returns the number of tasks done, the number of tasks failed, and one past the highest index
    /// of both.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let failed_end = self.failed.last().map_or(0, |index| index + 1);
        (self.done.len(), self.failed.len() as u64, self.done.end().max(failed_end))
    }

    /// Returns the first `most` ranges of tasks in `range` without an outcome, and the number of
    /// tasks in all of them.
    pub(super) fn missing(&self, range: Range<u64>, most: usize) -> (Vec<Range<u64>>, u64) {
        gaps(&self.done, &self.failed, range, most)
    }

    /// Folds the new outcomes of a span, below `limit`.
    pub(super) fn fold_span(
        &mut self,
        span: &OutputRun<'_>,
        limit: u64,
    ) -> Result<Result<FoldedSpan, Malformed>, UserCodeError> {
        let range = span.first.0..span.first.plus(span.count.into()).0;
        let within = range.start.min(limit)..range.end.min(limit);
        let missing = self.done.missing(within.clone());
        let new: u64 = missing.iter().map(|range| range.end - range.start).sum();
        let duplicates = within.end - within.start - new;
        if new == 0 {
            return Ok(Ok(FoldedSpan { duplicates, ..FoldedSpan::default() }));
        }
        let tasks = match self.span_tasks(span) {
            Ok(tasks) => tasks,
            Err(malformed) => return Ok(Err(malformed)), // before anything is folded
        };
        let collected = match catch_panic("collect", || self.fold.collect_span(span, &missing))? {
            Ok(collected) => collected,
            Err(CollectError::Malformed(malformed)) => return Ok(Err(malformed)),
            Err(CollectError::Panicked(text)) => {
                return Err(UserCodeError(format!("collect panicked: {text}")));
            }
        };
        self.folded = true;
        let Collected { undecodable, broke_at } = collected;
        let undecodable: Vec<_> = undecodable.into_iter().map(|(index, why)| (index.0, why)).collect();
        let end = broke_at.map_or(range.end, |last| last.0 + 1);
        let folded = subtract(&missing, end, undecodable.iter().map(|(index, _)| *index));
        if self.keep.keeps_outputs()
            && let Err(malformed) = self.keep_outputs(span, tasks.as_deref(), &range, &folded)
        {
            return Ok(Err(malformed)); // impossible: the span was an array just now
        }
        let mut fresh = 0;
        for range in folded {
            fresh += range.end - range.start;
            self.done.insert(range.clone());
            // An output overrides a failure.
            let overridden: Vec<u64> = self.failed.range(range).copied().collect();
            for index in overridden {
                self.failed.remove(&index);
                self.reasons.remove(&index);
                self.failures.insert(index, None);
            }
        }
        let late = new - fresh - undecodable.len() as u64;
        Ok(Ok(FoldedSpan { fresh, duplicates, late, broke: broke_at.is_some(), undecodable }))
    }

    /// Returns the tasks of the span one by one, if they are kept and the message has them.
    fn span_tasks<'s>(&self, span: &OutputRun<'s>) -> Result<Option<Vec<&'s RawValue>>, Malformed> {
        let Some(tasks) = span.tasks.filter(|_| self.keep == Keep::Tasks) else { return Ok(None) };
        let tasks: Vec<&RawValue> = serde_json::from_str(tasks.get()).map_err(Malformed::new)?;
        if tasks.len() != span.count as usize {
            let (count, found) = (span.count, tasks.len());
            return Err(Malformed::new(format_args!(
                "the span says it has {count} outputs, but has {found} tasks"
            )));
        }
        Ok(Some(tasks))
    }

    fn keep_outputs(
        &mut self,
        span: &OutputRun<'_>,
        tasks: Option<&[&RawValue]>,
        all: &Range<u64>,
        folded: &[Range<u64>],
    ) -> Result<(), Malformed> {
        if folded == std::slice::from_ref(all) {
            let outputs = span.outputs.get().to_owned();
            let tasks = tasks.and(span.tasks).map(|tasks| tasks.get().to_owned());
            self.outputs.push(KeptOutputs { first: all.start, count: span.count.into(), outputs, tasks });
            return Ok(());
        }
        let outputs: Vec<&RawValue> = serde_json::from_str(span.outputs.get()).map_err(Malformed::new)?;
        for range in folded {
            let place = |index: u64| usize::try_from(index - all.start).unwrap_or(usize::MAX);
            let part = |values: &[&RawValue]| {
                let part: Vec<&str> =
                    values[place(range.start)..place(range.end)].iter().map(|value| value.get()).collect();
                format!("[{}]", part.join(","))
            };
            let (first, count) = (range.start, range.end - range.start);
            self.outputs.push(KeptOutputs { first, count, outputs: part(&outputs), tasks: tasks.map(part) });
        }
        Ok(())
    }

    /// Marks the tasks of a range without an outcome as refused, and returns them as ascending
    /// ranges.
    pub(super) fn refuse(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let (open, _) = gaps(&self.done, &self.failed, range, usize::MAX);
        open.iter().for_each(|range| self.refused.insert(range.clone()));
        open
    }

    /// Records a failure. Returns true if the task had no outcome before.
    pub(super) fn record_failure(&mut self, index: u64, failure: StoredFailure) -> bool {
        if self.done.contains(index) || !self.failed.insert(index) {
            return false;
        }
        self.reasons.insert(index, failure_note(index, &failure.reason).reason);
        if self.reasons.len() > FINISHED_MAX_FAILURES {
            self.reasons.pop_last();
        }
        self.failures.insert(index, Some(failure));
        true
    }

    /// Removes the outcomes of failed tasks.
    pub(super) fn forget_failures(&mut self, indices: impl Iterator<Item = u64>) {
        for index in indices {
            if self.failed.remove(&index) {
                self.reasons.remove(&index);
                self.failures.insert(index, None);
            }
        }
    }

    /// Encodes the report if it changed. Called before the transaction, since it runs the job's
    /// code.
    pub(super) fn encode_report(&mut self) -> Result<(), UserCodeError> {
        if !std::mem::take(&mut self.folded) {
            return Ok(());
        }
        let report = catch_panic("the report", || self.fold.report())?;
        let report =
            report.map_err(|error| UserCodeError(format!("the report cannot be encoded: {error}")))?;
        let changed = self.saved_report.as_ref().is_none_or(|saved| saved.get() != report.get());
        self.report = changed.then_some(report);
        Ok(())
    }

    /// Returns true if the report is built at the end, from the kept outputs.
    pub(super) fn folds_in_order(&self) -> bool {
        self.folds_in_order
    }

    /// Builds the report from the kept outputs, after they were saved in this transaction, and
    /// saves it.
    ///
    /// # Errors
    /// The outer one if the ledger fails; the inner one if the job's own code fails, which leaves
    /// the report unchanged.
    pub(super) fn fold_in_order(
        &mut self,
        transaction: &Transaction<'_>,
        job: i64,
    ) -> rusqlite::Result<Result<(), UserCodeError>> {
        let fold = &mut self.fold;
        let folded = ordered_outputs::fold_outputs(transaction, job, |outputs| fold.fold_in_order(outputs))?;
        self.folded = true;
        if let Err(broken) = folded.map_err(UserCodeError).and_then(|()| self.encode_report()) {
            return Ok(Err(broken));
        }
        self.save(transaction, job).map(Ok)
    }

    /// Returns the report and the first failures. Called after [`FoldState::encode_report`]; a
    /// report that cannot be encoded is left out.
    pub(super) fn end_details(&self, report_max_bytes: usize) -> EndDetails {
        let failures = self.reasons.iter().map(|(index, reason)| failure_note(*index, reason)).collect();
        let encoded = match self.report.as_ref().or(self.saved_report.as_ref()) {
            Some(_) => None,
            // Nothing was folded.
            None => catch_panic("the report", || self.fold.report()).ok().and_then(Result::ok),
        };
        let report = self.report.as_ref().or(self.saved_report.as_ref()).or(encoded.as_ref());
        EndDetails::new(report.map(|report| &**report), report_max_bytes, failures)
    }

    /// Returns the job's conclusion about its report.
    pub(super) fn conclude(&self, account: &Account) -> Conclusion {
        self.fold.conclude(account)
    }

    /// Writes the changes. If the transaction fails, the state must not be used any more.
    pub(super) fn save(&mut self, transaction: &Transaction<'_>, job: i64) -> rusqlite::Result<()> {
        outcome_rows::save_set(transaction, TaskSet::Done, job, self.done.take_changed())?;
        outcome_rows::save_set(transaction, TaskSet::Refused, job, self.refused.take_changed())?;
        outcome_rows::save_failures(transaction, job, std::mem::take(&mut self.failures).into_iter())?;
        outcome_rows::save_outputs(transaction, job, self.outputs.drain(..))?;
        if let Some(report) = self.report.take() {
            outcome_rows::save_report(transaction, job, &report)?;
            self.saved_report = Some(report);
        }
        Ok(())
    }
}

/// Runs the job's own code where the contract foresees no panic: in its `Serialize` and
/// `Deserialize`.
pub(super) fn catch_panic<T>(what: &str, code: impl FnOnce() -> T) -> Result<T, UserCodeError> {
    catch_unwind(AssertUnwindSafe(code))
        .map_err(|panic| UserCodeError(format!("{what} panicked: {}", panic_text(&*panic))))
}

/// Returns the parts of `ranges` below `end`, without the given ascending indices.
fn subtract(ranges: &[Range<u64>], end: u64, mut left_out: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut parts = Vec::with_capacity(ranges.len());
    let mut hole = left_out.next();
    for range in ranges {
        let mut rest = range.start.min(end)..range.end.min(end);
        while let Some(index) = hole.filter(|index| *index < rest.end) {
            parts.push(rest.start..index);
            rest.start = index + 1;
            hole = left_out.next();
        }
        parts.push(rest);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtract_cuts_holes_and_end() {
        let ranges = [0..5, 8..10, 20..30];
        assert_eq!(subtract(&ranges, 40, [].into_iter()), ranges);
        assert_eq!(subtract(&ranges, 9, [2, 4].into_iter()), [0..2, 3..4, 8..9]);
        assert_eq!(subtract(&ranges, 0, [].into_iter()), []);
        assert_eq!(subtract(&[5..6, 8..9], 8, [5].into_iter()), []);
    }
}
