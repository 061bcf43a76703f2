//! Outcomes come in.

use gristmill_shared::{
    BuildId, Headers, Round, TaskIndex, WorkerId,
    wire::{Batch, DoneSpan, FailedTask, Malformed, Results, clip_reason},
};
use serde_json::value::RawValue;

use super::{
    Job, Phase,
    fold_state::{Broken, Taken},
};
use crate::{engine::Outbox, ledger::outcome_rows::Failure};

/// The round, worker and code that outcomes come from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// The round that they belong to.
    pub(super) round: Round,
    /// The worker that sent them, if one did.
    pub(super) worker: Option<&'a WorkerId>,
    /// The version of the job's code there.
    pub(super) version: u32,
    /// The build of its program, if it is known.
    pub(super) build: Option<&'a BuildId>,
}

impl Job {
    /// Counts what is new in a message of results. Nothing counts after the end: there even a known outcome is late.
    ///
    /// # Errors
    /// If some of it is malformed, or about tasks that the job does not have. The rest counts all the same: outcomes of
    /// several batches may travel together, and those of one must not take the others' with them.
    pub(crate) fn results(&mut self, results: &Results<'_>, outbox: &mut Outbox) -> Result<(), Malformed> {
        let Results { job: _, round, worker, busy_us, done, failed, version, build } = results;
        if let Some(why) = self.refusal(*version, build.as_ref()) {
            return self.refuse(results, &why);
        }
        let before = self.record.counts;
        let from = Source { round: *round, worker: Some(worker), version: *version, build: build.as_ref() };
        let taken = self.outcomes(from, done, failed, outbox);
        let after = self.record.counts;
        // All of it, though some of the message may have come before: it says only what all took together.
        if (after.done, after.failed) != (before.done, before.failed) {
            self.record.counts.busy_us = before.busy_us.saturating_add(*busy_us);
        }
        taken
    }

    fn outcomes(
        &mut self,
        from: Source<'_>,
        done: &[DoneSpan<'_>],
        failed: &[FailedTask<'_>],
        outbox: &mut Outbox,
    ) -> Result<(), Malformed> {
        self.changed = true;
        let limit = if self.has_ended() { u64::MAX } else { self.record.limit() };
        let before = self.record.counts.outcomes();
        let mut well_formed = beyond(limit, done, failed);
        for span in done {
            let taken = self.span(from, span, limit, outbox);
            well_formed = well_formed.and(taken);
        }
        failed.iter().filter(|failed| failed.index.0 < limit).for_each(|failed| self.failed(from, failed));
        self.recount();
        if self.record.counts.outcomes() > before {
            self.goes_on();
        }
        self.end_if_due(outbox);
        well_formed
    }

    fn span(
        &mut self,
        from: Source<'_>,
        span: &DoneSpan<'_>,
        limit: u64,
        outbox: &mut Outbox,
    ) -> Result<(), Malformed> {
        let Phase::Running(work) = &mut self.phase else {
            self.record.counts.late += u64::from(span.count);
            return Ok(());
        };
        match work.take(span, limit) {
            Ok(Ok(Taken { fresh, duplicates, late, broke, undecodable })) => {
                self.record.counts.duplicates += duplicates;
                self.record.counts.late += late;
                self.count_build(from, fresh); // before an end that tells of it
                if self.is_foreign(from.build) {
                    self.refuse_undecodable(from, &undecodable);
                } else {
                    for (index, reason) in undecodable {
                        let (round, worker) = (self.record.round, from.worker.cloned());
                        let failure =
                            Failure { round, reason, attempts: 1, losses: 0, worker, payload: None };
                        self.fail(from, index, failure);
                    }
                }
                if broke {
                    self.answered(outbox);
                }
                Ok(())
            }
            Ok(Err(malformed)) => Err(malformed),
            Err(Broken(why)) => {
                self.record.counts.late += u64::from(span.count);
                self.break_down(&why, outbox);
                Ok(())
            }
        }
    }

    fn failed(&mut self, from: Source<'_>, failed: &FailedTask<'_>) {
        let Source { round, worker, .. } = from;
        if round < self.record.round && !self.has_ended() {
            self.record.counts.duplicates += 1;
            return;
        }
        let failure = Failure {
            round,
            reason: clip_reason(&failed.reason).into_owned(),
            attempts: failed.attempts,
            losses: failed.losses,
            worker: worker.cloned(),
            payload: Some(failed.task.get().to_owned()),
        };
        self.fail(from, failed.index.0, failure);
    }

    fn fail(&mut self, from: Source<'_>, index: u64, failure: Failure) {
        match &mut self.phase {
            Phase::Ended(_) => self.record.counts.late += 1,
            Phase::Running(work) => {
                if work.fail(index, failure) {
                    self.count_build(from, 1);
                } else {
                    self.record.counts.duplicates += 1;
                }
            }
        }
    }

    /// Tasks whose message was given up: they have failed, since every task must get an outcome.
    ///
    /// # Errors
    /// If the tasks cannot be told from one another.
    pub(crate) fn given_up(
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
        let from = Source { round: batch.round, worker: None, version: batch.version, build: None };
        self.outcomes(from, &[], &failed, outbox)
    }
}

/// A task that is not there has no outcome.
pub(super) fn beyond(limit: u64, done: &[DoneSpan<'_>], failed: &[FailedTask<'_>]) -> Result<(), Malformed> {
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
