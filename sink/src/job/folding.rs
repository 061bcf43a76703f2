//! Folding of outcomes into a job.

use gristmill_ledger::StoredFailure;
use gristmill_shared::{
    BuildId, Headers, Round, TaskIndex, WorkerId,
    wire::{Batch, FailedTask, Malformed, OutputRun, Results, clip_reason},
};
use serde_json::value::RawValue;

use super::{
    ActiveJob, JobPhase,
    fold_state::{FoldedSpan, UserCodeError},
};
use crate::outbox::Outbox;

/// The round, worker and code that outcomes come from.
#[derive(Clone, Copy)]
pub(super) struct OutcomeSource<'a> {
    /// The round that they belong to.
    pub(super) round: Round,
    /// The worker that sent them, if one did.
    pub(super) worker: Option<&'a WorkerId>,
    /// The version of the job's code on the worker.
    pub(super) version: u32,
    /// The build of its program, if known.
    pub(super) build: Option<&'a BuildId>,
}

impl ActiveJob {
    /// Folds the new outcomes of a results message. After the end all outcomes count as late, even
    /// known ones.
    ///
    /// # Errors
    /// If a part is malformed, or about tasks that the job does not have. The other parts count
    /// nevertheless: outcomes of several batches may share a message.
    pub(crate) fn fold_results(
        &mut self,
        results: &Results<'_>,
        outbox: &mut Outbox,
    ) -> Result<(), Malformed> {
        let Results { job: _, round, worker, busy_us, done, failed, version, build } = results;
        if let Some(why) = self.refusal_reason(*version, build.as_ref()) {
            return self.refuse_results(results, &why);
        }
        let before = self.record.counts;
        let from =
            OutcomeSource { round: *round, worker: Some(worker), version: *version, build: build.as_ref() };
        let taken = self.fold_outcomes(from, done, failed, outbox);
        let after = self.record.counts;
        // All of it, even if some outcomes are repeated: the message has only the time of all
        // together.
        if (after.done, after.failed) != (before.done, before.failed) {
            self.record.counts.busy_us = before.busy_us.saturating_add(*busy_us);
        }
        taken
    }

    fn fold_outcomes(
        &mut self,
        from: OutcomeSource<'_>,
        done: &[OutputRun<'_>],
        failed: &[FailedTask<'_>],
        outbox: &mut Outbox,
    ) -> Result<(), Malformed> {
        self.changed = true;
        let limit = if self.has_ended() { u64::MAX } else { self.record.limit() };
        let before = self.record.counts.outcomes();
        let mut well_formed = check_range(limit, done, failed);
        for span in done {
            let taken = self.fold_span(from, span, limit, outbox);
            well_formed = well_formed.and(taken);
        }
        failed
            .iter()
            .filter(|failed| failed.index.0 < limit)
            .for_each(|failed| self.fold_failure(from, failed));
        self.refresh_counts();
        if self.record.counts.outcomes() > before {
            self.clear_stall();
        }
        self.end_if_complete(outbox);
        well_formed
    }

    fn fold_span(
        &mut self,
        from: OutcomeSource<'_>,
        span: &OutputRun<'_>,
        limit: u64,
        outbox: &mut Outbox,
    ) -> Result<(), Malformed> {
        let JobPhase::Running(fold_state) = &mut self.phase else {
            self.record.counts.late += u64::from(span.count);
            return Ok(());
        };
        match fold_state.fold_span(span, limit) {
            Ok(Ok(FoldedSpan { fresh, duplicates, late, broke, undecodable })) => {
                self.record.counts.duplicates += duplicates;
                self.record.counts.late += late;
                self.count_build(from, fresh); // before an end that tells of it
                if self.is_foreign(from.build) {
                    self.refuse_undecodable(from, &undecodable);
                } else {
                    for (index, reason) in undecodable {
                        let (round, worker) = (self.record.round, from.worker.cloned());
                        let failure =
                            StoredFailure { round, reason, attempts: 1, losses: 0, worker, payload: None };
                        self.record_failure(from, index, failure);
                    }
                }
                if broke {
                    self.end_answered(outbox);
                }
                Ok(())
            }
            Ok(Err(malformed)) => Err(malformed),
            Err(UserCodeError(why)) => {
                self.record.counts.late += u64::from(span.count);
                self.discard_and_fail(&why, outbox);
                Ok(())
            }
        }
    }

    fn fold_failure(&mut self, from: OutcomeSource<'_>, failed: &FailedTask<'_>) {
        let OutcomeSource { round, worker, .. } = from;
        if round < self.record.round && !self.has_ended() {
            self.record.counts.duplicates += 1;
            return;
        }
        let failure = StoredFailure {
            round,
            reason: clip_reason(&failed.reason).into_owned(),
            attempts: failed.attempts,
            losses: failed.losses,
            worker: worker.cloned(),
            payload: Some(failed.task.get().to_owned()),
        };
        self.record_failure(from, failed.index.0, failure);
    }

    fn record_failure(&mut self, from: OutcomeSource<'_>, index: u64, failure: StoredFailure) {
        match &mut self.phase {
            JobPhase::Ended(_) => self.record.counts.late += 1,
            JobPhase::Running(fold_state) => {
                if fold_state.record_failure(index, failure) {
                    self.count_build(from, 1);
                } else {
                    self.record.counts.duplicates += 1;
                }
            }
        }
    }

    /// Fails the tasks of a dead batch, since every task must get an outcome.
    ///
    /// # Errors
    /// If the tasks cannot be separated.
    pub(crate) fn fail_batch(
        &mut self,
        batch: &Batch<'_>,
        headers: &Headers,
        outbox: &mut Outbox,
    ) -> Result<(), Malformed> {
        let tasks: Vec<&RawValue> = serde_json::from_str(batch.tasks.get())
            .map_err(|error| Malformed::new(format_args!("the batch's tasks are no array: {error}")))?;
        if tasks.len() != batch.count as usize {
            let (said, found) = (batch.count, tasks.len());
            return Err(Malformed::new(format_args!("the batch says it has {said} tasks, but has {found}")));
        }
        let reason = headers.reason.as_deref().unwrap_or("the broker gave up on its message");
        let failed: Vec<_> = (batch.first.0..)
            .zip(tasks)
            .map(|(index, task)| FailedTask {
                index: TaskIndex(index),
                reason: reason.into(),
                attempts: headers.attempt,
                losses: headers.loss,
                task,
            })
            .collect();
        let from = OutcomeSource { round: batch.round, worker: None, version: batch.version, build: None };
        self.fold_outcomes(from, &[], &failed, outbox)
    }
}

/// Checks that all outcomes are of tasks below `limit`.
pub(super) fn check_range(
    limit: u64,
    done: &[OutputRun<'_>],
    failed: &[FailedTask<'_>],
) -> Result<(), Malformed> {
    let spans = done.iter().map(|span| (span.first.0, u64::from(span.count)));
    let failures = failed.iter().map(|failed| (failed.index.0, 1));
    for (first, count) in spans.chain(failures) {
        if first.checked_add(count).is_none_or(|end| end > limit) {
            return Err(Malformed::new(format_args!(
                "it has outcomes for {count} tasks from index {first} on, but the job has {limit} tasks"
            )));
        }
    }
    Ok(())
}
