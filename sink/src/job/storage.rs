//! Between a job in memory and the ledger.

use std::{mem, sync::Arc, time::Instant};

use gristmill_shared::{AnyJob, JobId, Registry, wire::FINISHED_MAX_FAILURES};
use rusqlite::Transaction;

use super::{
    Job, Phase,
    fold_state::{Broken, SavedOutcomes, Work},
    lifecycle::{kept, read_job},
};
use crate::{
    SinkError,
    engine::Outbox,
    ledger::{Ledger, Record, builds::Builds, outcome_rows},
};

impl Job {
    /// A job as the ledger has it, if it does. One that is running but cannot be read here ends, visibly.
    pub(crate) fn load(
        ledger: &Ledger,
        job: JobId,
        registry: &Registry,
        outbox: &mut Outbox,
    ) -> Result<Option<Self>, SinkError> {
        let found = ledger.read("a job is read", |connection| Record::load(connection, job))?;
        let Some((seq, record)) = found else { return Ok(None) };
        let builds = ledger.read("a job is read", |connection| Builds::load(connection, seq))?;
        let saved = record.counts;
        let moves = record.end.is_none();
        let mut job = Self {
            record,
            phase: Phase::Ended(None),
            builds,
            refused: None,
            saved,
            counted: saved,
            seq: Some(seq),
            changed: false,
            unconcluded: None,
            moves,
            since: Instant::now(),
        };
        if moves {
            match job.load_work(ledger, seq, registry)? {
                Ok(work) => job.phase = Phase::Running(Box::new(work)),
                Err(Broken(why)) => job.break_down(&why, outbox),
            }
        }
        Ok(Some(job))
    }

    /// The outcomes of a job in the ledger, and its report.
    pub(super) fn load_work(
        &self,
        ledger: &Ledger,
        seq: i64,
        registry: &Registry,
    ) -> Result<Result<Work, Broken>, SinkError> {
        let (saved, reasons, report) = ledger.read("a job is read", |connection| {
            let saved = SavedOutcomes {
                done: outcome_rows::load_done(connection, seq)?,
                failed: outcome_rows::load_failed(connection, seq)?,
                refused: outcome_rows::load_refused(connection, seq)?,
            };
            let reasons = outcome_rows::load_reasons(connection, seq, FINISHED_MAX_FAILURES)?;
            Ok((saved, reasons, outcome_rows::load_report(connection, seq)?))
        })?;
        let opened = &self.record.opened;
        let resume = |job: Arc<dyn AnyJob>| {
            let keep = kept(opened, &*job);
            Work::resume(job, keep, report, saved)
        };
        let work = read_job(opened, self.record.version, registry).and_then(resume);
        Ok(work.map(|work| work.with_reasons(reasons)))
    }

    /// Runs what of the job's own code is needed before a transaction. It may end the job.
    pub(crate) fn prepare(&mut self, outbox: &mut Outbox) {
        self.tell_refused(outbox);
        if let Phase::Running(work) = &mut self.phase
            && let Err(Broken(why)) = work.prepare()
        {
            self.break_down(&why, outbox);
        }
    }

    /// Writes what changed, and answers how many outcomes are new. If the transaction fails, the job must not be used
    /// any more.
    pub(crate) fn save(
        &mut self,
        transaction: &Transaction<'_>,
        outbox: &mut Outbox,
    ) -> rusqlite::Result<u64> {
        let seq = self.record.save(transaction, self.seq)?;
        self.seq = Some(seq);
        if let Phase::Running(work) | Phase::Ended(Some(work)) = &mut self.phase {
            work.save(transaction, seq)?;
        }
        self.builds.save(transaction, seq)?;
        if let Some(ending) = self.unconcluded.take() {
            self.conclude_in_order(transaction, seq, ending, outbox)?;
            self.record.save(transaction, self.seq)?;
        }
        let saved = mem::replace(&mut self.saved, self.record.counts);
        self.changed = false;
        Ok((self.saved.done + self.saved.failed).saturating_sub(saved.done + saved.failed))
    }
}
