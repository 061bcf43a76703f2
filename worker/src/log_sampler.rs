//! Which failed tries are told loudly: of each job the first, the second, the fourth and so on. So nobody waits for a
//! job without knowing that its tasks fail, and a million that fail alike fill no log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use gristmill_shared::JobId;

/// For how many jobs failed tries are counted; beyond it the oldest begins anew.
const COUNTED_MAX_JOBS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<BTreeMap<JobId, u64>>);

impl Complaints {
    /// Counts a failed try of this job; how many there were here, if this one is told.
    pub(crate) fn one_more(&self, job: JobId) -> Option<u64> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = jobs.entry(job).or_default();
        *count += 1;
        let told = Some(*count).filter(|count| count.is_power_of_two());
        if jobs.len() > COUNTED_MAX_JOBS
            && let Some(oldest) = jobs.keys().find(|other| **other != job).copied()
        {
            jobs.remove(&oldest);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_is_told_of_less_and_less() {
        let complaints = Complaints::default();
        let (one, other) = (JobId::generate(), JobId::generate());
        let told = |job, times| (0..times).filter_map(|_| complaints.one_more(job)).collect::<Vec<_>>();
        assert_eq!(told(one, 100), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(told(other, 3), [1, 2]);
        assert_eq!(told(one, 28), [128]);
        // Of many jobs the latest are counted, and whichever fails just now.
        for _ in 0..1_000 {
            complaints.one_more(JobId::generate());
        }
        assert_eq!(told(one, 3), [1, 2]);
        assert_eq!(complaints.0.lock().unwrap().len(), COUNTED_MAX_JOBS);
    }
}
