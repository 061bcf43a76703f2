//! A cache of jobs with their opened state: each spec is read, and each state opened, once per job
//! and round rather than once per batch.
//!
//! A state is user code, so it is dropped on a slot's thread: only slots take jobs from the cache,
//! and a slot is woken to do so when a round ends.

use std::{
    collections::BTreeMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::select_all;
use gristmill_shared::{AnyJob, JobId, OpenError, Registry, Round, StopSignal, panic_text, wire::Batch};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::run_queue::RunQueueReceiver;

/// Jobs kept while no slot uses them. The oldest idle one is dropped first; it is read and prepared
/// again if another of its batches comes. A worker with more slots has one more for each that is in
/// use.
const CACHE_MAX_JOBS: usize = 64;

/// The jobs of a worker's slots.
#[derive(Debug, Default)]
pub(crate) struct JobCache {
    jobs: Mutex<BTreeMap<(JobId, Round), CachedJob>>,
    /// Notifies that another job is in the cache.
    added: Notify,
}

#[derive(Debug)]
struct CachedJob {
    spec: Box<RawValue>,
    job: Arc<dyn AnyJob>,
    /// Given when the round has ended.
    stop: StopSignal,
}

impl JobCache {
    /// Returns the batch's job, and opens it if necessary. A batch that claims another spec for the
    /// same job gets that one. Call it on a slot's thread: jobs that make room are dropped here.
    pub(crate) fn open(
        &self,
        registry: &Registry,
        batch: &Batch<'_>,
        stop: &StopSignal,
    ) -> Result<Arc<dyn AnyJob>, OpenError> {
        let key = (batch.job, batch.round);
        let mut jobs = self.jobs();
        if let Some(cached) = jobs.get(&key)
            && cached.spec.get() == batch.spec.get()
            && cached.job.kind() == batch.kind.as_str()
            && cached.job.version() == batch.version
        {
            return Ok(Arc::clone(&cached.job));
        }
        let job = registry.open(&batch.kind, batch.version, batch.spec)?;
        let cached = CachedJob { spec: batch.spec.to_owned(), job: Arc::clone(&job), stop: stop.clone() };
        let replaced = jobs.insert(key, cached);
        let mut dropped: Vec<_> = replaced.into_iter().collect();
        if jobs.len() > CACHE_MAX_JOBS {
            let idle = jobs.iter().find(|(_, cached)| Arc::strong_count(&cached.job) == 1);
            let oldest = idle.map(|(key, _)| *key);
            dropped.extend(oldest.and_then(|key| jobs.remove(&key)));
        }
        drop(jobs);
        self.added.notify_one();
        dropped.into_iter().for_each(|cached| drop_job(cached.job));
        Ok(job)
    }

    /// Drops the jobs whose round has ended. Call it on a slot's thread.
    pub(crate) fn forget_ended(&self) {
        let mut jobs = self.jobs();
        let ended: Vec<_> =
            jobs.iter().filter(|(_, cached)| cached.stop.is_stopped()).map(|(key, _)| *key).collect();
        let ended: Vec<_> = ended.iter().filter_map(|key| jobs.remove(key)).collect();
        drop(jobs);
        ended.into_iter().for_each(|cached| drop_job(cached.job));
    }

    /// Drops all jobs. For slots that end.
    pub(crate) fn clear(&self) {
        let all = mem::take(&mut *self.jobs());
        all.into_values().for_each(|cached| drop_job(cached.job));
    }

    /// Asks the slots to clean up whenever a round ends that has a job here. Never returns. Cancel
    /// safe.
    pub(crate) async fn watch_ended(&self, run_receiver: &RunQueueReceiver) {
        loop {
            let mut added = pin!(self.added.notified());
            added.as_mut().enable(); // what is added from here on is noticed
            let signals: Vec<_> = self.jobs().values().map(|cached| cached.stop.clone()).collect();
            let (ended, running): (Vec<_>, Vec<_>) = signals.into_iter().partition(StopSignal::is_stopped);
            if !ended.is_empty() {
                run_receiver.request_cleanup();
            }
            if running.is_empty() {
                added.await;
                continue;
            }
            let one_ends = select_all(running.iter().map(|stop| Box::pin(stop.stopped())));
            tokio::select! {
                () = added => {}
                _ = one_ends => {}
            }
        }
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<(JobId, Round), CachedJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops a reference to a job. The last one drops its state, which is user code and may panic.
pub(crate) fn drop_job(job: Arc<dyn AnyJob>) {
    let kind = job.kind();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(job))) {
        let panic = panic_text(&*panic);
        tracing::warn!(kind, panic, "dropping a job's state panicked; the worker goes on without it");
    }
}
