//! Sampling of failed tries for the log: of each job the first, the second, the fourth and so on
//! are logged as warnings. A failing job is always visible, and a million equal failures do not
//! fill the log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use gristmill_shared::JobId;

/// Jobs whose failed tries are counted; beyond it the count of the oldest restarts.
const COUNTED_MAX_JOBS: usize = 64;

/// Counters of failed tries, by job.
#[derive(Debug, Default)]
pub(crate) struct FailureLogSampler(Mutex<BTreeMap<JobId, u64>>);

impl FailureLogSampler {
    /// Counts a failed try of this job. Returns the count if this try is to be logged as a warning.
    pub(crate) fn count_failure(&self, job: JobId) -> Option<u64> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = jobs.entry(job).or_default();
        *count += 1;
        let logged = Some(*count).filter(|count| count.is_power_of_two());
        if jobs.len() > COUNTED_MAX_JOBS
            && let Some(oldest) = jobs.keys().find(|other| **other != job).copied()
        {
            jobs.remove(&oldest);
        }
        logged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_logged_ever_less() {
        let sampler = FailureLogSampler::default();
        let (one, other) = (JobId::generate(), JobId::generate());
        let logged = |job, times| (0..times).filter_map(|_| sampler.count_failure(job)).collect::<Vec<_>>();
        assert_eq!(logged(one, 100), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(logged(other, 3), [1, 2]);
        assert_eq!(logged(one, 28), [128]);
        // The latest jobs are counted, and the job that fails now.
        for _ in 0..1_000 {
            sampler.count_failure(JobId::generate());
        }
        assert_eq!(logged(one, 3), [1, 2]);
        assert_eq!(sampler.0.lock().unwrap().len(), COUNTED_MAX_JOBS);
    }
}
