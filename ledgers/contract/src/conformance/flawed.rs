//! Stores that break one promise each, made of one that keeps all.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use gristmill_shared::{JobId, Lane, LedgerId, Message};
use serde_json::value::RawValue;

use super::Store;
use crate::{
    Changes, Committed, DeadMessages, FailureRow, JobChange, JobKey, JobParts, JobRecord, JobSnapshot,
    JobsAfter, KeptOutputs, Ledger, LedgerAccess, LedgerError, LedgerLocation, OutboxRow, OutboxState,
    OutboxTarget, OutputsPage, PageBound, ParkedMessages, PruneReport, PruneRule, RetryTask, SavedOutcomes,
    StoredJob, StoredOutputs,
};

/// The promise that a [`FlawedStore`] breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFlaw {
    /// Reports are not stored.
    LosesReports,
    /// A commit is two transactions: the jobs, then the rest.
    SplitsCommits,
    /// A failed commit is reported as a success.
    HidesFailures,
    /// Containers of the set of done tasks are stored once, and never replaced.
    KeepsFirstContainer,
    /// A job that is not there is written anyway.
    RevivesPrunedJobs,
    /// Rows of the outbox are numbered from 1 in each answer.
    RenumbersRows,
    /// Another ledger answers a second writer.
    AdmitsSecondWriter,
    /// The id changes with each start.
    ChangesId,
    /// The newest parked messages are dropped instead of the oldest.
    DropsNewestParked,
    /// Dead messages are stored without a bound, by more than one commit, and not counted.
    ForgetsDropped,
    /// Numbers above 32 bits are cut.
    CutsNumbers,
    /// A reader sees the counts of an earlier commit.
    ShowsOldCounts,
    /// A page begins one row too late.
    SkipsRows,
    /// Pages have no bound.
    IgnoresBounds,
    /// Pruning deletes a job of those that are to be kept.
    PrunesOneMore,
}

impl LedgerFlaw {
    /// Every flaw, with the promise that it breaks.
    pub const ALL: [(Self, &'static str); 15] = [
        (Self::LosesReports, "commit_stores_every_part"),
        (Self::SplitsCommits, "stopped_commit_changes_nothing"),
        (Self::HidesFailures, "full_store_changes_nothing"),
        (Self::KeepsFirstContainer, "reload_equals_model"),
        (Self::RevivesPrunedJobs, "pruned_job_cannot_be_written"),
        (Self::RenumbersRows, "keys_and_rows_are_not_reused"),
        (Self::AdmitsSecondWriter, "second_writer_is_refused"),
        (Self::ChangesId, "id_is_kept"),
        (Self::DropsNewestParked, "parked_messages_are_bounded"),
        (Self::ForgetsDropped, "dead_messages_are_bounded"),
        (Self::CutsNumbers, "extreme_values_read_back"),
        (Self::ShowsOldCounts, "readers_see_whole_commits"),
        (Self::SkipsRows, "pages_have_every_row_once"),
        (Self::IgnoresBounds, "page_ends_at_its_bound"),
        (Self::PrunesOneMore, "prune_spares_running_jobs"),
    ];
}

/// A store with a flaw.
#[derive(Debug)]
pub struct FlawedStore {
    inner: Box<dyn Store>,
    /// A store for a second writer.
    other: Box<dyn Store>,
    flaw: LedgerFlaw,
    is_open: Arc<AtomicBool>,
    /// Containers that were stored.
    seen: Arc<Mutex<BTreeSet<(JobId, u64)>>>,
}

impl FlawedStore {
    /// Makes a flawed store of two that keep all promises.
    #[must_use]
    pub fn new(inner: Box<dyn Store>, other: Box<dyn Store>, flaw: LedgerFlaw) -> Self {
        Self { inner, other, flaw, is_open: Arc::default(), seen: Arc::default() }
    }

    fn wrap(&self, inner: Box<dyn Ledger>) -> Box<dyn Ledger> {
        self.is_open.store(true, Ordering::Relaxed);
        let id = if self.flaw == LedgerFlaw::ChangesId { LedgerId::generate() } else { inner.id().clone() };
        let (is_open, seen) = (Arc::clone(&self.is_open), Arc::clone(&self.seen));
        Box::new(FlawedLedger { inner, flaw: self.flaw, id, seen, is_open })
    }
}

impl Store for FlawedStore {
    fn open(&self) -> Result<Box<dyn Ledger>, LedgerError> {
        if self.flaw == LedgerFlaw::AdmitsSecondWriter && self.is_open.load(Ordering::Relaxed) {
            return self.other.open();
        }
        Ok(self.wrap(self.inner.open()?))
    }

    fn access(&self) -> Option<Result<Box<dyn LedgerAccess>, LedgerError>> {
        let inner = match self.inner.access()? {
            Ok(inner) => inner,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(Box::new(FlawedAccess { inner, flaw: self.flaw, last_count: AtomicU64::new(0) })))
    }

    fn fail_after(&self, steps: Option<u64>) {
        self.inner.fail_after(steps);
    }

    fn set_full(&self, is_full: bool) {
        self.inner.set_full(is_full);
    }
}

struct FlawedLedger {
    inner: Box<dyn Ledger>,
    flaw: LedgerFlaw,
    id: LedgerId,
    seen: Arc<Mutex<BTreeSet<(JobId, u64)>>>,
    is_open: Arc<AtomicBool>,
}

impl fmt::Debug for FlawedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {:?}", self.flaw, self.inner)
    }
}

impl Drop for FlawedLedger {
    fn drop(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
    }
}

impl FlawedLedger {
    /// Returns the bound of a page, as the flaw leaves it.
    fn bound(&self, bound: PageBound) -> PageBound {
        let none = PageBound { rows: 1_000_000, bytes: usize::MAX };
        if self.flaw == LedgerFlaw::IgnoresBounds { none } else { bound }
    }

    /// Copies the change of a job, with the flaw. `record` is its record, as the flaw leaves it.
    fn change<'a>(&self, change: &JobChange<'a>, record: &'a JobRecord) -> JobChange<'a> {
        let job = record.opened.job;
        let mut done = change.done.clone();
        if self.flaw == LedgerFlaw::KeepsFirstContainer {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            done.retain(|(container, _)| seen.insert((job, *container)));
        }
        JobChange {
            key: change.key,
            record,
            done,
            refused: change.refused.clone(),
            failures: change.failures.clone(),
            outputs: change.outputs.clone(),
            report: change.report.filter(|_| self.flaw != LedgerFlaw::LosesReports),
            builds: change.builds.clone(),
        }
    }
}

impl Ledger for FlawedLedger {
    fn id(&self) -> &LedgerId {
        &self.id
    }

    fn place(&self) -> &LedgerLocation {
        self.inner.place()
    }

    fn commit(&mut self, changes: &Changes<'_>) -> Result<Committed, LedgerError> {
        let mut records: Vec<JobRecord> = changes.jobs.iter().map(|change| change.record.clone()).collect();
        if self.flaw == LedgerFlaw::CutsNumbers {
            for seal in records.iter_mut().filter_map(|record| record.seal.as_mut()) {
                seal.total = seal.total.min(u32::MAX.into());
            }
        }
        let mut jobs: Vec<_> =
            changes.jobs.iter().zip(&records).map(|(change, record)| self.change(change, record)).collect();
        if self.flaw == LedgerFlaw::RevivesPrunedJobs {
            for change in &mut jobs {
                if self.inner.job(change.record.opened.job)?.is_none() {
                    change.key = None;
                }
            }
        }
        let mut flawed = Changes {
            jobs,
            unparked: changes.unparked.clone(),
            parked: changes.parked.clone(),
            dead: changes.dead.clone(),
            settled: changes.settled.clone(),
            outbox: changes.outbox.clone(),
        };
        match self.flaw {
            LedgerFlaw::DropsNewestParked => flawed.parked.truncate(10),
            LedgerFlaw::ForgetsDropped => {
                flawed.dead.reverse();
                flawed.dead.truncate(10);
            }
            LedgerFlaw::SplitsCommits => {
                let jobs = std::mem::take(&mut flawed.jobs);
                let first = self.inner.commit(&Changes { jobs, ..Changes::default() })?;
                return Ok(Committed { keys: first.keys, ..self.inner.commit(&flawed)? });
            }
            _ => {}
        }
        match self.inner.commit(&flawed) {
            Err(_) if self.flaw == LedgerFlaw::HidesFailures => Ok(Committed::default()),
            committed => committed,
        }
    }

    fn job(&mut self, job: JobId) -> Result<Option<StoredJob>, LedgerError> {
        self.inner.job(job)
    }

    fn running(&mut self, lane: &Lane) -> Result<Vec<JobRecord>, LedgerError> {
        self.inner.running(lane)
    }

    fn outcomes(&mut self, job: JobKey) -> Result<SavedOutcomes, LedgerError> {
        self.inner.outcomes(job)
    }

    fn report(&mut self, job: JobKey) -> Result<Option<Box<RawValue>>, LedgerError> {
        self.inner.report(job)
    }

    fn reasons(&mut self, job: JobKey, most: usize) -> Result<Vec<(u64, String)>, LedgerError> {
        self.inner.reasons(job, most)
    }

    fn failed_tasks(
        &mut self,
        job: JobKey,
        wanted: &BTreeSet<u64>,
        bound: PageBound,
    ) -> Result<Vec<RetryTask>, LedgerError> {
        let bound = self.bound(bound);
        self.inner.failed_tasks(job, wanted, bound)
    }

    fn kept_outputs(
        &mut self,
        job: JobKey,
        from: u64,
        bound: PageBound,
    ) -> Result<Vec<KeptOutputs>, LedgerError> {
        let bound = self.bound(bound);
        self.inner.kept_outputs(job, from, bound)
    }

    fn outbox(
        &mut self,
        target: OutboxTarget,
        after: i64,
        bound: PageBound,
    ) -> Result<Vec<OutboxRow>, LedgerError> {
        let bound = self.bound(bound);
        let mut rows = self.inner.outbox(target, after, bound)?;
        if self.flaw == LedgerFlaw::RenumbersRows {
            rows.iter_mut().zip(1..).for_each(|(row, number)| row.row = number);
        }
        Ok(rows)
    }

    fn outbox_state(&mut self) -> Result<OutboxState, LedgerError> {
        self.inner.outbox_state()
    }

    fn parked(&mut self, job: JobId) -> Result<Vec<Message>, LedgerError> {
        self.inner.parked(job)
    }
}

#[derive(Debug)]
struct FlawedAccess {
    inner: Box<dyn LedgerAccess>,
    flaw: LedgerFlaw,
    /// The tasks done as of the last answer but one.
    last_count: AtomicU64,
}

impl LedgerAccess for FlawedAccess {
    fn place(&self) -> &LedgerLocation {
        self.inner.place()
    }

    fn jobs(&mut self, after: Option<JobsAfter>, most: usize) -> Result<Vec<JobRecord>, LedgerError> {
        self.inner.jobs(after, most)
    }

    fn job(&mut self, job: JobId, parts: JobParts) -> Result<Option<JobSnapshot>, LedgerError> {
        let mut found = self.inner.job(job, parts)?;
        if self.flaw == LedgerFlaw::ShowsOldCounts
            && let Some(snapshot) = &mut found
        {
            let count = &mut snapshot.record.counts.done;
            *count = self.last_count.swap(*count, Ordering::Relaxed);
        }
        Ok(found)
    }

    fn failures(
        &mut self,
        job: JobKey,
        after: Option<u64>,
        most: usize,
    ) -> Result<Vec<FailureRow>, LedgerError> {
        self.inner.failures(job, after, most)
    }

    fn outputs(&mut self, job: JobKey, page: OutputsPage) -> Result<Vec<StoredOutputs>, LedgerError> {
        let is_later = page.after.is_some() && self.flaw == LedgerFlaw::SkipsRows;
        let mut rows = self.inner.outputs(job, page)?;
        if is_later && !rows.is_empty() {
            rows.remove(0);
        }
        Ok(rows)
    }

    fn parked(&mut self) -> Result<ParkedMessages, LedgerError> {
        self.inner.parked()
    }

    fn dead(&mut self) -> Result<DeadMessages, LedgerError> {
        self.inner.dead()
    }

    fn prune(&mut self, rule: PruneRule) -> Result<PruneReport, LedgerError> {
        let keep =
            rule.keep.map(|keep| keep.saturating_sub(usize::from(self.flaw == LedgerFlaw::PrunesOneMore)));
        self.inner.prune(PruneRule { keep, ..rule })
    }
}
