//! Messages of a producer or a user about a job as a whole.

use std::{sync::Arc, time::Instant};

use gristmill_ledger::{JobRecord, NUMBER_MAX, OutcomeCounts, Seal};
use gristmill_shared::{
    AnyJob, Keep, OpenError, Registry,
    wire::{Malformed, Opened},
};

use super::{
    ActiveJob, JobPhase,
    builds::Builds,
    end_details::EndDetails,
    fold_state::{FoldState, UserCodeError, catch_panic},
};
use crate::outbox::Outbox;

impl ActiveJob {
    /// Opens a job. One that cannot run here ends at once, visibly.
    ///
    /// # Errors
    /// If its plan has more tasks than can be counted.
    pub(crate) fn open(opened: Opened, registry: &Registry, outbox: &mut Outbox) -> Result<Self, Malformed> {
        if let Some(tasks) = opened.plan.tasks.filter(|tasks| *tasks > NUMBER_MAX) {
            return Err(Malformed::new(format_args!("its plan has {tasks} tasks, more than {NUMBER_MAX}")));
        }
        outbox.push_fact_batched(&opened);
        let job = read_job(&opened, opened.version, registry);
        let keep = job.as_ref().map_or(Keep::Report, |job| effective_keep(&opened, &**job));
        let fold_state = job.and_then(|job| FoldState::new(job, keep));
        let mut job = Self {
            record: JobRecord::new(opened, keep.keeps_outputs()),
            phase: JobPhase::Ended(None),
            builds: Builds::default(),
            refused: None,
            saved: OutcomeCounts::default(),
            reported: OutcomeCounts::default(),
            key: None,
            changed: true,
            pending_end: None,
            was_running: true,
            since: Instant::now(),
        };
        match fold_state {
            Ok(fold_state) => job.phase = JobPhase::Running(Box::new(fold_state)),
            Err(UserCodeError(why)) => job.discard_and_fail(&why, outbox),
        }
        Ok(job)
    }

    /// Handles a repeated opening, which is harmless. A producer that resumes the job may do so
    /// because the broker has lost everything, so the facts are published again. The next commit
    /// publishes the progress, since the producer sizes its batches by it. `details` are those of a
    /// job that has ended.
    pub(crate) fn open_again(&mut self, again: &Opened, details: EndDetails, outbox: &mut Outbox) {
        let first = &self.record.opened;
        let other_code = (first.version, &first.build) != (again.version, &again.build);
        if first.kind != again.kind || first.spec.get() != again.spec.get() || other_code {
            tracing::warn!(job = %first.job, "the job was opened again with other parameters; they are ignored");
        }
        outbox.push_fact(first);
        if self.record.end.is_some() {
            self.publish_end(details, outbox);
        } else {
            self.changed = true;
        }
    }

    /// Completes the split. After an early end this only sets the number of tasks.
    ///
    /// # Errors
    /// If there are more tasks than can be counted.
    pub(crate) fn apply_seal(&mut self, seal: Seal, outbox: &mut Outbox) -> Result<(), Malformed> {
        if seal.total > NUMBER_MAX {
            let total = seal.total;
            return Err(Malformed::new(format_args!("it seals {total} tasks, more than {NUMBER_MAX}")));
        }
        self.changed = true;
        let contradiction = self.contradiction(&seal);
        match contradiction {
            Some(why) if self.has_ended() => {
                tracing::warn!(job = %self.record.opened.job, why, "a seal after the job's end does not fit");
            }
            Some(why) => self.fail_job(why, outbox),
            None => {
                self.record.seal = Some(seal);
                let skipped = self.record.missing_count();
                match &mut self.record.end {
                    Some(end) => end.skipped = skipped,
                    None => self.end_if_complete(outbox),
                }
            }
        }
        Ok(())
    }

    fn contradiction(&self, seal: &Seal) -> Option<String> {
        let (total, reached) = (seal.total, self.record.counts.reached);
        match (&self.record.seal, self.record.opened.plan.tasks) {
            (Some(first), _) if first != seal => Some(format!(
                "the split was sealed twice: with {} tasks ({}), then with {total} ({}) \
                 (hint: split must yield the same tasks each time)",
                first.total, first.digest, seal.digest
            )),
            (_, Some(planned)) if planned != total => Some(format!(
                "the plan says {planned} tasks, the split gave {total} (hint: mend plan or split)"
            )),
            _ if total < reached => {
                Some(format!("the split gave {total} tasks, but task {} has an outcome", reached - 1))
            }
            _ => None,
        }
    }

    /// Fails the job because its split failed. There will be no seal.
    pub(crate) fn abort(&mut self, reason: &str, outbox: &mut Outbox) {
        self.fail_job(format!("the split was aborted: {reason}"), outbox);
    }

    /// Stops the job at the user's request.
    pub(crate) fn cancel(&mut self, reason: &str, outbox: &mut Outbox) {
        self.stop(format!("cancelled: {reason}"), outbox);
    }
}

/// Returns what the ledger keeps of a job: by its policy, or else by its kind. A job that folds its
/// outputs in order needs its outputs.
pub(super) fn effective_keep(opened: &Opened, job: &dyn AnyJob) -> Keep {
    let keep = opened.policy.keep.unwrap_or_else(|| job.keep());
    if job.folds_in_order() && !keep.keeps_outputs() { Keep::Outputs } else { keep }
}

/// Opens a job of this version of its code from its parameters.
pub(super) fn read_job(
    opened: &Opened,
    version: u32,
    registry: &Registry,
) -> Result<Arc<dyn AnyJob>, UserCodeError> {
    let Opened { kind, spec, .. } = opened;
    match catch_panic("reading the spec", || registry.open(kind, version, spec))? {
        Ok(job) => Ok(job),
        Err(OpenError::UnknownKind) => {
            let known: Vec<_> = registry.kinds().map(|kind| kind.as_str()).collect();
            let known = known.join(", ");
            Err(UserCodeError(format!(
                "the sink knows no jobs of kind {kind} (it knows: {known}; hint: start the sink of the program that \
                 submitted it, and submit it again)"
            )))
        }
        Err(error @ OpenError::Version { .. }) => Err(UserCodeError(format!(
            "the sink cannot fold it: {error} (hint: start the sink of the program that submitted it, and submit it \
             again)"
        ))),
        Err(OpenError::Spec(error)) => Err(UserCodeError(error.to_string())),
    }
}
