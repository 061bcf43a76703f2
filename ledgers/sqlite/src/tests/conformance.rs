//! The conformance suite on a file and in memory, and on stores that it must catch.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use gristmill_ledger::{
    Changes, Committed, JobKey, JobRecord, KeptOutputs, Ledger, LedgerAccess, LedgerError, LedgerLocation,
    OutboxRow, OutboxState, OutboxTarget, PageBound, RetryTask, SavedOutcomes, StoredJob,
    conformance::{
        self, ALL_PROMISES, Store,
        flawed::{FlawedStore, LedgerFlaw},
    },
};
use gristmill_shared::{JobId, Lane, LedgerId, Message};
use serde_json::value::RawValue;
use tempfile::TempDir;

use crate::{SqliteAccess, SqliteLedger, store::storage_error};

/// A ledger file in a directory of its own, or a ledger in memory.
struct SqliteStore {
    dir: Option<TempDir>,
    state: Arc<Mutex<StoreState>>,
}

#[derive(Default)]
struct StoreState {
    ledger: Option<SqliteLedger>,
    is_full: bool,
    /// Steps of SQLite's machine until it is interrupted; none if it is 0.
    steps_left: Arc<AtomicU64>,
}

impl StoreState {
    fn apply_bound(&mut self) {
        let Some(ledger) = &mut self.ledger else { return };
        if self.is_full {
            ledger.fill().unwrap();
        } else {
            ledger.connection.query_row("PRAGMA max_page_count = 1073741823", [], |_| Ok(())).unwrap();
        }
    }
}

impl SqliteStore {
    fn on_disk() -> Box<dyn Store> {
        Box::new(Self { dir: Some(tempfile::tempdir().unwrap()), state: Arc::default() })
    }

    fn in_memory() -> Box<dyn Store> {
        Box::new(Self { dir: None, state: Arc::default() })
    }

    fn place(&self) -> LedgerLocation {
        match &self.dir {
            Some(dir) => LedgerLocation::File(dir.path().join("ledger")),
            None => LedgerLocation::Memory,
        }
    }

    fn state(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap()
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteStore({})", self.place())
    }
}

impl Store for SqliteStore {
    fn open(&self) -> Result<Box<dyn Ledger>, LedgerError> {
        let mut ledger = SqliteLedger::open(self.place())?;
        let mut state = self.state();
        let steps_left = Arc::clone(&state.steps_left);
        let is_over = move || {
            let count_down = |left: u64| left.checked_sub(1);
            steps_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_down) == Ok(1)
        };
        let handled = ledger.connection.progress_handler(1, Some(is_over));
        handled.map_err(|source| storage_error(ledger.place(), "being opened", source))?;
        let (id, place) = (ledger.id().clone(), ledger.place().clone());
        state.ledger = Some(ledger);
        state.apply_bound();
        Ok(Box::new(SharedLedger { id, place, state: Arc::clone(&self.state), is_kept: self.dir.is_none() }))
    }

    fn reopen(&self, ledger: Box<dyn Ledger>) -> Result<Box<dyn Ledger>, LedgerError> {
        if self.dir.is_none() {
            self.state().apply_bound();
            return Ok(ledger);
        }
        drop(ledger);
        self.open()
    }

    fn access(&self) -> Option<Result<Box<dyn LedgerAccess>, LedgerError>> {
        let path = self.dir.as_ref()?.path().join("ledger");
        Some(SqliteAccess::open(&path).map(|access| Box::new(access) as _))
    }

    fn fail_after(&self, steps: Option<u64>) {
        self.state().steps_left.store(steps.unwrap_or(0), Ordering::Relaxed);
    }

    fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }
}

/// A ledger that its store can still reach.
struct SharedLedger {
    id: LedgerId,
    place: LedgerLocation,
    state: Arc<Mutex<StoreState>>,
    /// True if the ledger outlives this handle.
    is_kept: bool,
}

impl SharedLedger {
    fn with<T>(
        &self,
        call: impl FnOnce(&mut SqliteLedger) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        call(state.ledger.as_mut().expect("the store keeps it until this handle is dropped"))
    }
}

impl Drop for SharedLedger {
    fn drop(&mut self) {
        if !self.is_kept {
            self.state.lock().unwrap().ledger = None;
        }
    }
}

impl fmt::Debug for SharedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedLedger({})", self.place)
    }
}

impl Ledger for SharedLedger {
    fn id(&self) -> &LedgerId {
        &self.id
    }
    fn place(&self) -> &LedgerLocation {
        &self.place
    }
    fn commit(&mut self, changes: &Changes<'_>) -> Result<Committed, LedgerError> {
        self.with(|ledger| ledger.commit(changes))
    }
    fn job(&mut self, job: JobId) -> Result<Option<StoredJob>, LedgerError> {
        self.with(|ledger| ledger.job(job))
    }
    fn running(&mut self, lane: &Lane) -> Result<Vec<JobRecord>, LedgerError> {
        self.with(|ledger| ledger.running(lane))
    }
    fn outcomes(&mut self, job: JobKey) -> Result<SavedOutcomes, LedgerError> {
        self.with(|ledger| ledger.outcomes(job))
    }
    fn report(&mut self, job: JobKey) -> Result<Option<Box<RawValue>>, LedgerError> {
        self.with(|ledger| ledger.report(job))
    }
    fn reasons(&mut self, job: JobKey, most: usize) -> Result<Vec<(u64, String)>, LedgerError> {
        self.with(|ledger| ledger.reasons(job, most))
    }
    fn failed_tasks(
        &mut self,
        job: JobKey,
        wanted: &BTreeSet<u64>,
        bound: PageBound,
    ) -> Result<Vec<RetryTask>, LedgerError> {
        self.with(|ledger| ledger.failed_tasks(job, wanted, bound))
    }
    fn kept_outputs(
        &mut self,
        job: JobKey,
        from: u64,
        bound: PageBound,
    ) -> Result<Vec<KeptOutputs>, LedgerError> {
        self.with(|ledger| ledger.kept_outputs(job, from, bound))
    }
    fn outbox(
        &mut self,
        target: OutboxTarget,
        after: i64,
        bound: PageBound,
    ) -> Result<Vec<OutboxRow>, LedgerError> {
        self.with(|ledger| ledger.outbox(target, after, bound))
    }
    fn outbox_state(&mut self) -> Result<OutboxState, LedgerError> {
        self.with(SqliteLedger::outbox_state)
    }
    fn parked(&mut self, job: JobId) -> Result<Vec<Message>, LedgerError> {
        self.with(|ledger| ledger.parked(job))
    }
}

#[test]
fn file_keeps_every_promise() {
    conformance::check_all(&SqliteStore::on_disk);
}

#[test]
fn memory_keeps_every_promise() {
    conformance::check_all(&SqliteStore::in_memory);
}

/// Each flaw is caught by the promise that it breaks, and each promise has a flaw.
#[test]
fn every_flaw_is_caught() {
    for promise in ALL_PROMISES {
        let (flaw, _) = LedgerFlaw::ALL.iter().find(|(_, broken)| *broken == promise.name).unwrap();
        let make = || -> Box<dyn Store> {
            Box::new(FlawedStore::new(SqliteStore::on_disk(), SqliteStore::on_disk(), *flaw))
        };
        let broken = promise.check(&make);
        println!("{}: {flaw:?}: {broken:?}", promise.name);
        assert!(broken.is_err(), "{} does not notice {flaw:?}", promise.name);
    }
    assert_eq!(ALL_PROMISES.len(), LedgerFlaw::ALL.len());
}
