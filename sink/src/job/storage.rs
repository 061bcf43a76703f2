//! Loading a job from the ledger, and saving it.

use std::{mem, sync::Arc, time::Instant};

use gristmill_shared::{AnyJob, JobId, Registry, wire::FINISHED_MAX_FAILURES};
use rusqlite::Transaction;

use super::{
    ActiveJob, JobPhase,
    fold_state::{FoldState, SavedOutcomes, UserCodeError},
    lifecycle::{effective_keep, read_job},
};
use crate::{
    SinkError,
    ledger::{
        JobRecord, Ledger,
        builds::Builds,
        outcome_rows::{self, TaskSet},
    },
    outbox::Outbox,
};

impl ActiveJob {
    /// Loads a job from the ledger, if it has it. A running job that this program cannot read ends,
    /// visibly.
    pub(crate) fn load(
        ledger: &Ledger,
        job: JobId,
        registry: &Registry,
        outbox: &mut Outbox,
    ) -> Result<Option<Self>, SinkError> {
        let found = ledger.read("a job is read", |connection| JobRecord::load(connection, job))?;
        let Some((seq, record)) = found else { return Ok(None) };
        let builds = ledger.read("a job is read", |connection| Builds::load(connection, seq))?;
        let saved = record.counts;
        let was_running = record.end.is_none();
        let mut job = Self {
            record,
            phase: JobPhase::Ended(None),
            builds,
            refused: None,
            saved,
            reported: saved,
            seq: Some(seq),
            changed: false,
            pending_end: None,
            was_running,
            since: Instant::now(),
        };
        if was_running {
            match job.load_fold_state(ledger, seq, registry)? {
                Ok(fold_state) => job.phase = JobPhase::Running(Box::new(fold_state)),
                Err(UserCodeError(why)) => job.discard_and_fail(&why, outbox),
            }
        }
        Ok(Some(job))
    }

    /// Loads the outcomes and the report of a job.
    pub(super) fn load_fold_state(
        &self,
        ledger: &Ledger,
        seq: i64,
        registry: &Registry,
    ) -> Result<Result<FoldState, UserCodeError>, SinkError> {
        let (saved, reasons, report) = ledger.read("a job is read", |connection| {
            let saved = SavedOutcomes {
                done: outcome_rows::load_set(connection, TaskSet::Done, seq)?,
                failed: outcome_rows::load_failed(connection, seq)?,
                refused: outcome_rows::load_set(connection, TaskSet::Refused, seq)?,
            };
            let reasons = outcome_rows::load_reasons(connection, seq, FINISHED_MAX_FAILURES)?;
            Ok((saved, reasons, outcome_rows::load_report(connection, seq)?))
        })?;
        let opened = &self.record.opened;
        let resume = |job: Arc<dyn AnyJob>| {
            let keep = effective_keep(opened, &*job);
            FoldState::resume(job, keep, report, saved)
        };
        let fold_state = read_job(opened, self.record.version, registry).and_then(resume);
        Ok(fold_state.map(|fold_state| fold_state.with_reasons(reasons)))
    }

    /// Runs the job's own code that is needed before a transaction. May end the job.
    pub(crate) fn prepare(&mut self, outbox: &mut Outbox) {
        self.publish_refused(outbox);
        if let JobPhase::Running(fold_state) = &mut self.phase
            && let Err(UserCodeError(why)) = fold_state.encode_report()
        {
            self.discard_and_fail(&why, outbox);
        }
    }

    /// Writes the changes, and returns the number of new outcomes. If the transaction fails, the
    /// job must not be used any more.
    pub(crate) fn save(
        &mut self,
        transaction: &Transaction<'_>,
        outbox: &mut Outbox,
    ) -> rusqlite::Result<u64> {
        let seq = self.record.save(transaction, self.seq)?;
        self.seq = Some(seq);
        if let JobPhase::Running(fold_state) | JobPhase::Ended(Some(fold_state)) = &mut self.phase {
            fold_state.save(transaction, seq)?;
        }
        self.builds.save(transaction, seq)?;
        if let Some(ending) = self.pending_end.take() {
            self.conclude_in_order(transaction, seq, ending, outbox)?;
            self.record.save(transaction, self.seq)?;
        }
        let saved = mem::replace(&mut self.saved, self.record.counts);
        self.changed = false;
        Ok((self.saved.done + self.saved.failed).saturating_sub(saved.done + saved.failed))
    }
}
