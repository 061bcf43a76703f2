//! Loading a job from the ledger, and saving it.

use std::{mem, sync::Arc, time::Instant};

use gristmill_ledger::{JobChange, JobKey, Ledger, StoredJob};
use gristmill_shared::{AnyJob, JobId, Registry, wire::FINISHED_MAX_FAILURES};

use super::{
    ActiveJob, JobPhase,
    builds::Builds,
    fold_state::{FoldState, UserCodeError},
    lifecycle::{effective_keep, read_job},
};
use crate::{SinkError, outbox::Outbox};

impl ActiveJob {
    /// Loads a job from the ledger, if it has it. A running job that this program cannot read ends,
    /// visibly.
    pub(crate) fn load(
        ledger: &mut dyn Ledger,
        job: JobId,
        registry: &Registry,
        outbox: &mut Outbox,
    ) -> Result<Option<Self>, SinkError> {
        let Some(StoredJob { key, record, builds }) = ledger.job(job)? else { return Ok(None) };
        let saved = record.counts;
        let was_running = record.end.is_none();
        let mut job = Self {
            record,
            phase: JobPhase::Ended(None),
            builds: Builds::from(builds),
            refused: None,
            saved,
            reported: saved,
            key: Some(key),
            changed: false,
            pending_end: None,
            was_running,
            since: Instant::now(),
        };
        if was_running {
            match job.load_fold_state(ledger, key, registry)? {
                Ok(fold_state) => job.phase = JobPhase::Running(Box::new(fold_state)),
                Err(UserCodeError(why)) => job.discard_and_fail(&why, outbox),
            }
        }
        Ok(Some(job))
    }

    /// Loads the outcomes and the report of a job.
    pub(super) fn load_fold_state(
        &self,
        ledger: &mut dyn Ledger,
        key: JobKey,
        registry: &Registry,
    ) -> Result<Result<FoldState, UserCodeError>, SinkError> {
        let (saved, report) = (ledger.outcomes(key)?, ledger.report(key)?);
        let reasons = ledger.reasons(key, FINISHED_MAX_FAILURES)?;
        let opened = &self.record.opened;
        let resume = |job: Arc<dyn AnyJob>| {
            let keep = effective_keep(opened, &*job);
            FoldState::resume(job, keep, report, saved)
        };
        let fold_state = read_job(opened, self.record.version, registry).and_then(resume);
        Ok(fold_state.map(|fold_state| fold_state.with_reasons(reasons)))
    }

    /// Runs the job's own code that is needed before a commit: encodes the report, or folds the
    /// outputs in order if the job has just ended. May end the job.
    pub(crate) fn prepare(&mut self, ledger: &mut dyn Ledger, outbox: &mut Outbox) -> Result<(), SinkError> {
        self.publish_refused(outbox);
        if let JobPhase::Running(fold_state) = &mut self.phase
            && let Err(UserCodeError(why)) = fold_state.encode_report()
        {
            self.discard_and_fail(&why, outbox);
        }
        match self.pending_end.take() {
            Some(ending) => self.conclude_in_order(ledger, ending, outbox),
            None => Ok(()),
        }
    }

    /// Moves the changes into a commit. If that fails, the job must not be used any more.
    pub(crate) fn stage(&mut self) -> JobChange<'_> {
        let change = JobChange { builds: self.builds.take_fresh(), ..JobChange::new(self.key, &self.record) };
        match &mut self.phase {
            JobPhase::Running(fold_state) | JobPhase::Ended(Some(fold_state)) => fold_state.stage(change),
            JobPhase::Ended(None) => change,
        }
    }

    /// Notes that the changes are committed, and returns the number of new outcomes.
    pub(crate) fn record_commit(&mut self, key: JobKey) -> u64 {
        (self.key, self.changed) = (Some(key), false);
        let saved = mem::replace(&mut self.saved, self.record.counts);
        (self.saved.done + self.saved.failed).saturating_sub(saved.done + saved.failed)
    }
}
