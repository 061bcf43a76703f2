//! Detection of running jobs that get no outcomes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId,
    metrics::{SINK_JOBS_RUNNING, SINK_JOBS_STALLED, SINK_STALLS},
    wire::now_ms,
};

/// Minimum time without an outcome after which a running job counts as stalled. Slow tasks prolong
/// it.
const STALL_AFTER: Duration = Duration::from_secs(60);
/// Multiple of the mean task time, or of the longest pause between two outcomes, that must pass
/// too.
const STALL_FACTOR: u32 = 10;
/// Maximum time without an outcome, however slow the job is.
const STALL_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Stalls found in one search, which bounds the jobs that are loaded at once.
const STALLS_MAX_PER_SEARCH: usize = 100;

/// The last outcome of each running job.
#[derive(Debug)]
pub(super) struct StallDetector {
    /// The configured time without an outcome, if any.
    after: Option<Duration>,
    jobs: HashMap<JobId, WatchedJob>,
    /// The earliest time at which a job can stall.
    next: Option<Instant>,
    /// True while the broker does not work, so that no outcome can arrive.
    suspended: bool,
}

#[derive(Debug)]
struct WatchedJob {
    last_outcome: Instant,
    last_outcome_ms: u64,
    /// The mean time of a task.
    mean: Duration,
    /// The longest pause between two outcomes that was not a stall. The wait for the first one does
    /// not count: there may have been no worker.
    pause: Duration,
    has_outcome: bool,
    is_stalled: bool,
}

impl StallDetector {
    pub(super) fn new(after: Option<Duration>) -> Self {
        Self { after, jobs: HashMap::new(), next: None, suspended: false }
    }

    /// Starts watching a running job whose tasks take `mean`; `is_stalled` if an earlier sink found
    /// that. A job that is already watched is left as it is.
    pub(super) fn watch(&mut self, job: JobId, mean: Duration, is_stalled: bool, now: Instant) {
        self.jobs.entry(job).or_insert_with(|| {
            let (pause, has_outcome) = (Duration::ZERO, false);
            let watched = WatchedJob {
                last_outcome: now,
                last_outcome_ms: now_ms(),
                mean,
                pause,
                has_outcome,
                is_stalled,
            };
            let due = watched.due(self.after);
            self.next = Some(self.next.map_or(due, |next| next.min(due)));
            watched
        });
    }

    /// Records that a watched job got outcomes.
    pub(super) fn record_progress(&mut self, job: JobId, mean: Duration, now: Instant) {
        let Some(watched) = self.jobs.get_mut(&job) else { return };
        if !watched.is_stalled && watched.has_outcome {
            watched.pause = watched.pause.max(now.saturating_duration_since(watched.last_outcome));
        }
        (watched.last_outcome, watched.last_outcome_ms, watched.mean, watched.is_stalled) =
            (now, now_ms(), mean, false);
        watched.has_outcome = true;
        let due = watched.due(self.after);
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
    }

    /// Stops watching a job that has ended.
    pub(super) fn forget(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }

    /// Suspends detection while the broker does not work. When it works again, the time of each job
    /// starts over.
    pub(super) fn set_suspended(&mut self, suspended: bool, now: Instant) {
        if self.suspended && !suspended {
            let after = self.after;
            let running = self.jobs.values_mut().filter(|watched| !watched.is_stalled);
            self.next = running
                .map(|watched| {
                    watched.last_outcome = now;
                    watched.due(after)
                })
                .min();
        }
        self.suspended = suspended;
    }

    /// Sets the gauges of running and of stalled jobs.
    pub(super) fn update_gauges(&self) {
        SINK_JOBS_RUNNING.set([], self.jobs.len() as f64);
        SINK_JOBS_STALLED.set([], self.jobs.values().filter(|watched| watched.is_stalled).count() as f64);
    }

    /// Returns the earliest time at which a job can stall.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| !self.suspended)
    }

    /// Returns the jobs that have newly stalled, with the time of their last outcome in
    /// milliseconds since 1970.
    pub(super) fn find_stalled(&mut self, now: Instant) -> Vec<(JobId, u64)> {
        let mut stalled = Vec::new();
        if self.suspended {
            return stalled;
        }
        self.next = None;
        for (job, watched) in self.jobs.iter_mut().filter(|(_, watched)| !watched.is_stalled) {
            let due = watched.due(self.after);
            if due <= now && stalled.len() < STALLS_MAX_PER_SEARCH {
                watched.is_stalled = true;
                stalled.push((*job, watched.last_outcome_ms));
                SINK_STALLS.add([], 1);
            } else {
                self.next = Some(self.next.map_or(due, |next| next.min(due)));
            }
        }
        stalled
    }
}

impl WatchedJob {
    fn due(&self, after: Option<Duration>) -> Instant {
        let slow = self.mean.max(self.pause).saturating_mul(STALL_FACTOR);
        self.last_outcome
            + after.unwrap_or_else(|| slow.clamp(STALL_AFTER, STALL_AFTER_MAX)).min(STALL_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_SECOND: Duration = Duration::from_secs(1);

    /// A job that is watched from now on.
    fn watched(after: Option<Duration>, mean: Duration) -> (StallDetector, JobId, Instant) {
        let (mut stalls, job, now) = (StallDetector::new(after), JobId::generate(), Instant::now());
        assert_eq!(stalls.due(), None);
        stalls.watch(job, mean, false, now);
        (stalls, job, now)
    }

    #[test]
    fn job_stalls_once_until_it_moves() {
        let (mut stalls, job, start) = watched(None, Duration::ZERO);
        assert_eq!(stalls.due(), Some(start + STALL_AFTER));
        assert!(stalls.find_stalled(start + STALL_AFTER - ONE_SECOND).is_empty());
        let found = stalls.find_stalled(start + STALL_AFTER);
        assert_eq!(found.iter().map(|(job, _)| *job).collect::<Vec<_>>(), [job]);
        assert!(stalls.find_stalled(start + 5 * STALL_AFTER).is_empty() && stalls.due().is_none());
        let moved = start + 6 * STALL_AFTER;
        stalls.record_progress(job, Duration::ZERO, moved);
        assert_eq!(stalls.due(), Some(moved + STALL_AFTER), "a stall is no pause to go by");
        assert_eq!(stalls.find_stalled(moved + STALL_AFTER).len(), 1);
        stalls.forget(job);
        stalls.record_progress(job, Duration::ZERO, moved);
        assert!(stalls.find_stalled(moved + 9 * STALL_AFTER).is_empty());
    }

    /// Slow jobs stall later, unless the time is configured.
    #[test]
    fn slow_jobs_get_more_time() {
        let (mut stalls, job, start) = watched(None, 30 * ONE_SECOND);
        assert!(stalls.find_stalled(start + 299 * ONE_SECOND).is_empty());
        let start = start + 200 * ONE_SECOND;
        stalls.record_progress(job, ONE_SECOND, start);
        assert_eq!(
            stalls.due(),
            Some(start + STALL_AFTER),
            "that the first was waited for for long says nothing"
        );
        stalls.record_progress(job, ONE_SECOND, start + 40 * ONE_SECOND);
        assert!(stalls.find_stalled(start + (40 + 399) * ONE_SECOND).is_empty(), "there was a pause of 40 s");
        assert_eq!(stalls.find_stalled(start + (40 + 400) * ONE_SECOND).len(), 1);

        let (mut slowest, _, start) = watched(None, STALL_AFTER_MAX);
        assert_eq!(slowest.find_stalled(start + STALL_AFTER_MAX).len(), 1);
        let (mut told, _, start) = watched(Some(ONE_SECOND), 30 * ONE_SECOND);
        assert_eq!(told.find_stalled(start + ONE_SECOND).len(), 1);
    }

    #[test]
    fn no_stall_without_broker() {
        let (mut stalls, job, start) = watched(None, Duration::ZERO);
        stalls.set_suspended(false, start);
        assert_eq!(stalls.due(), Some(start + STALL_AFTER));
        stalls.set_suspended(true, start);
        let back = start + 9 * STALL_AFTER;
        assert!(stalls.due().is_none() && stalls.find_stalled(back).is_empty());
        stalls.set_suspended(false, back);
        assert_eq!(stalls.due(), Some(back + STALL_AFTER));
        stalls.record_progress(job, Duration::ZERO, back + ONE_SECOND);
        assert_eq!(
            stalls.find_stalled(back + ONE_SECOND + STALL_AFTER).len(),
            1,
            "the outage was no pause to go by"
        );
    }

    #[test]
    fn stalls_per_search_are_bounded() {
        let (mut stalls, _, start) = watched(None, Duration::ZERO);
        (1..STALLS_MAX_PER_SEARCH + 1)
            .for_each(|_| stalls.watch(JobId::generate(), ONE_SECOND, false, start));
        stalls.watch(JobId::generate(), ONE_SECOND, true, start);
        let now = start + STALL_AFTER;
        assert_eq!(stalls.find_stalled(now).len(), STALLS_MAX_PER_SEARCH);
        assert!(stalls.due().is_some_and(|due| due <= now));
        assert_eq!((stalls.find_stalled(now).len(), stalls.due()), (1, None), "one stalled before");
    }
}
