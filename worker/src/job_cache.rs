//! Jobs that were read from their spec, so that it is parsed once per job and not once per batch.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use gristmill_shared::{AnyJob, JobId, OpenError, Registry, wire::Batch};
use serde_json::value::RawValue;

/// How many jobs are kept; the oldest is dropped first and read again if another batch of it comes.
const CACHE_MAX_JOBS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct JobCache {
    jobs: Mutex<BTreeMap<JobId, Cached>>,
}

#[derive(Debug)]
struct Cached {
    spec: Box<RawValue>,
    job: Arc<dyn AnyJob>,
}

impl JobCache {
    /// The batch's job. A batch that claims another spec for the same job gets what it claims.
    pub(crate) fn open(&self, registry: &Registry, batch: &Batch<'_>) -> Result<Arc<dyn AnyJob>, OpenError> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = jobs.get(&batch.job)
            && cached.spec.get() == batch.spec.get()
            && cached.job.kind() == batch.kind.as_str()
            && cached.job.version() == batch.version
        {
            return Ok(Arc::clone(&cached.job));
        }
        let job = registry.open(&batch.kind, batch.version, batch.spec)?;
        jobs.insert(batch.job, Cached { spec: batch.spec.to_owned(), job: Arc::clone(&job) });
        if jobs.len() > CACHE_MAX_JOBS {
            jobs.pop_first();
        }
        Ok(job)
    }
}
