//! What a producer, or a user, says about a job as a whole.

use std::{sync::Arc, time::Instant};

use gristmill_shared::{
    AnyJob, Keep, OpenError, Registry,
    wire::{Malformed, Opened},
};

use super::{
    Job, Phase,
    end_details::Findings,
    fold_state::{Broken, Work, guarded},
};
use crate::{
    engine::Outbox,
    ledger::{Counts, NUMBER_MAX, Record, Seal, builds::Builds},
};

impl Job {
    /// A job begins. One that cannot run here ends at once, visibly.
    ///
    /// # Errors
    /// If its plan has more tasks than can be counted.
    pub(crate) fn open(opened: Opened, registry: &Registry, outbox: &mut Outbox) -> Result<Self, Malformed> {
        if let Some(tasks) = opened.plan.tasks.filter(|tasks| *tasks > NUMBER_MAX) {
            return Err(Malformed::new(format_args!("its plan has {tasks} tasks, more than {NUMBER_MAX}")));
        }
        outbox.fact_soon(&opened);
        let job = read_job(&opened, opened.version, registry);
        let keep = job.as_ref().map_or(Keep::Report, |job| kept(&opened, &**job));
        let work = job.and_then(|job| Work::new(job, keep));
        let mut job = Self {
            record: Record::new(opened, keep.keeps_outputs()),
            phase: Phase::Ended(None),
            builds: Builds::default(),
            refused: None,
            saved: Counts::default(),
            counted: Counts::default(),
            seq: None,
            changed: true,
            unconcluded: None,
            moves: true,
            since: Instant::now(),
        };
        match work {
            Ok(work) => job.phase = Phase::Running(Box::new(work)),
            Err(Broken(why)) => job.break_down(&why, outbox),
        }
        Ok(job)
    }

    /// A repetition is harmless. A producer that takes the job up again may do so because the broker has forgotten
    /// everything, so the journal is told again what it should have. And what is known of its tasks is told with the next
    /// commit, since the producer sizes its batches by that.
    /// `findings` are those of a job that has ended.
    pub(crate) fn opened_again(&mut self, again: &Opened, findings: Findings, outbox: &mut Outbox) {
        let first = &self.record.opened;
        let other_code = (first.version, &first.build) != (again.version, &again.build);
        if first.kind != again.kind || first.spec.get() != again.spec.get() || other_code {
            tracing::warn!(job = %first.job, "the job was opened again with other parameters; they are ignored");
        }
        outbox.fact(first);
        if self.record.end.is_some() {
            self.announce_end(findings, outbox);
        } else {
            self.changed = true;
        }
    }

    /// The split is complete. After an early end this only tells how many tasks there were.
    ///
    /// # Errors
    /// If there are more tasks than can be counted.
    pub(crate) fn sealed(&mut self, seal: Seal, outbox: &mut Outbox) -> Result<(), Malformed> {
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
                let skipped = self.record.without_outcome();
                match &mut self.record.end {
                    Some(end) => end.skipped = skipped,
                    None => self.end_if_due(outbox),
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

    /// The split failed; there will be no seal.
    pub(crate) fn aborted(&mut self, reason: &str, outbox: &mut Outbox) {
        self.fail_job(format!("the split was aborted: {reason}"), outbox);
    }

    /// Somebody ends it.
    pub(crate) fn cancelled(&mut self, reason: &str, outbox: &mut Outbox) {
        self.stop(format!("cancelled: {reason}"), outbox);
    }
}

/// Returns what the ledger keeps of a job: as its submitter said, or else its kind. A job that
/// folds its outputs in order needs them.
pub(super) fn kept(opened: &Opened, job: &dyn AnyJob) -> Keep {
    let keep = opened.policy.keep.unwrap_or_else(|| job.keep());
    if job.folds_in_order() && !keep.keeps_outputs() { Keep::Outputs } else { keep }
}

/// Reads a job from its parameters, in this version of its code.
pub(super) fn read_job(
    opened: &Opened,
    version: u32,
    registry: &Registry,
) -> Result<Arc<dyn AnyJob>, Broken> {
    let Opened { kind, spec, .. } = opened;
    match guarded("reading the spec", || registry.open(kind, version, spec))? {
        Ok(job) => Ok(job),
        Err(OpenError::UnknownKind) => {
            let known: Vec<_> = registry.kinds().map(|kind| kind.as_str()).collect();
            let known = known.join(", ");
            Err(Broken(format!(
                "the sink knows no jobs of kind {kind} (it knows: {known}; hint: start the sink of the program that \
                 submitted it, and submit it again)"
            )))
        }
        Err(error @ OpenError::Version { .. }) => Err(Broken(format!(
            "the sink cannot fold it: {error} (hint: start the sink of the program that submitted it, and submit it \
             again)"
        ))),
        Err(OpenError::Spec(error)) => Err(Broken(error.to_string())),
    }
}
