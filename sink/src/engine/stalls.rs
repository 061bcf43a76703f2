//! Jobs that run but get no outcomes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId,
    meter::{SINK_JOBS_RUNNING, SINK_JOBS_STALLED, SINK_STALLS},
    wire::now_ms,
};

/// A running job stalls when no outcome has come for this long, unless its tasks are slow.
const STALL_AFTER: Duration = Duration::from_secs(60);
/// And for this many times what a task takes, or what the longest pause was from one outcome to the next.
const STALL_FACTOR: u32 = 10;
/// But for no longer than this, however slow the job is.
const STALL_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// How many jobs are found to stall at a time, so that no more of them are in memory at once.
const STALLS_AT_A_TIME: usize = 100;

/// When each running job moved last.
#[derive(Debug)]
pub(super) struct Stalls {
    /// How long no outcome may come, if somebody decided that.
    after: Option<Duration>,
    jobs: HashMap<JobId, Watched>,
    /// Before this no job stalls.
    next: Option<Instant>,
    /// The broker does not work, so that no outcome can come.
    suspended: bool,
}

#[derive(Debug)]
struct Watched {
    moved: Instant,
    moved_ms: u64,
    /// What a task takes, on the average.
    mean: Duration,
    /// The longest pause from one outcome to the next that was no stall. How long the first was waited for says nothing:
    /// perhaps nobody worked yet.
    pause: Duration,
    has_moved: bool,
    stalls: bool,
}

impl Stalls {
    pub(super) fn new(after: Option<Duration>) -> Self {
        Self { after, jobs: HashMap::new(), next: None, suspended: false }
    }

    /// A job is running, whose tasks take `mean`; `stalls` if that was found before. Nothing if it is watched already.
    pub(super) fn watch(&mut self, job: JobId, mean: Duration, stalls: bool, now: Instant) {
        self.jobs.entry(job).or_insert_with(|| {
            let (pause, has_moved) = (Duration::ZERO, false);
            let watched = Watched { moved: now, moved_ms: now_ms(), mean, pause, has_moved, stalls };
            let due = watched.due(self.after);
            self.next = Some(self.next.map_or(due, |next| next.min(due)));
            watched
        });
    }

    /// A job that is watched got outcomes.
    pub(super) fn moved(&mut self, job: JobId, mean: Duration, now: Instant) {
        let Some(watched) = self.jobs.get_mut(&job) else { return };
        if !watched.stalls && watched.has_moved {
            watched.pause = watched.pause.max(now.saturating_duration_since(watched.moved));
        }
        (watched.moved, watched.moved_ms, watched.mean, watched.stalls) = (now, now_ms(), mean, false);
        watched.has_moved = true;
        let due = watched.due(self.after);
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
    }

    /// A job has ended.
    pub(super) fn forget(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }

    /// While the broker does not work no job stalls; when it works again, each is given its time anew.
    pub(super) fn suspend(&mut self, suspended: bool, now: Instant) {
        if self.suspended && !suspended {
            let after = self.after;
            let running = self.jobs.values_mut().filter(|watched| !watched.stalls);
            self.next = running
                .map(|watched| {
                    watched.moved = now;
                    watched.due(after)
                })
                .min();
        }
        self.suspended = suspended;
    }

    /// Says how many jobs run, and how many of them stall, to whoever watches.
    pub(super) fn count(&self) {
        SINK_JOBS_RUNNING.set([], self.jobs.len() as f64);
        SINK_JOBS_STALLED.set([], self.jobs.values().filter(|watched| watched.stalls).count() as f64);
    }

    /// When a job may be found to stall.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| !self.suspended)
    }

    /// The jobs that stall from now on, and since when, in milliseconds since 1970.
    pub(super) fn look(&mut self, now: Instant) -> Vec<(JobId, u64)> {
        let mut stalled = Vec::new();
        if self.suspended {
            return stalled;
        }
        self.next = None;
        for (job, watched) in self.jobs.iter_mut().filter(|(_, watched)| !watched.stalls) {
            let due = watched.due(self.after);
            if due <= now && stalled.len() < STALLS_AT_A_TIME {
                watched.stalls = true;
                stalled.push((*job, watched.moved_ms));
                SINK_STALLS.add([], 1);
            } else {
                self.next = Some(self.next.map_or(due, |next| next.min(due)));
            }
        }
        stalled
    }
}

impl Watched {
    fn due(&self, after: Option<Duration>) -> Instant {
        let slow = self.mean.max(self.pause).saturating_mul(STALL_FACTOR);
        self.moved + after.unwrap_or_else(|| slow.clamp(STALL_AFTER, STALL_AFTER_MAX)).min(STALL_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A job that is watched from now on.
    fn watched(after: Option<Duration>, mean: Duration) -> (Stalls, JobId, Instant) {
        let (mut stalls, job, now) = (Stalls::new(after), JobId::generate(), Instant::now());
        assert_eq!(stalls.due(), None);
        stalls.watch(job, mean, false, now);
        (stalls, job, now)
    }

    #[test]
    fn a_job_stalls_once_until_it_moves_again() {
        let (mut stalls, job, start) = watched(None, Duration::ZERO);
        assert_eq!(stalls.due(), Some(start + STALL_AFTER));
        assert!(stalls.look(start + STALL_AFTER - SECOND).is_empty());
        let found = stalls.look(start + STALL_AFTER);
        assert_eq!(found.iter().map(|(job, _)| *job).collect::<Vec<_>>(), [job]);
        assert!(stalls.look(start + 5 * STALL_AFTER).is_empty() && stalls.due().is_none());
        let moved = start + 6 * STALL_AFTER;
        stalls.moved(job, Duration::ZERO, moved);
        assert_eq!(stalls.due(), Some(moved + STALL_AFTER), "a stall is no pause to go by");
        assert_eq!(stalls.look(moved + STALL_AFTER).len(), 1);
        stalls.forget(job);
        stalls.moved(job, Duration::ZERO, moved);
        assert!(stalls.look(moved + 9 * STALL_AFTER).is_empty());
    }

    #[test]
    fn slow_jobs_are_given_time_unless_somebody_says_otherwise() {
        let (mut stalls, job, start) = watched(None, 30 * SECOND);
        assert!(stalls.look(start + 299 * SECOND).is_empty());
        let start = start + 200 * SECOND;
        stalls.moved(job, SECOND, start);
        assert_eq!(
            stalls.due(),
            Some(start + STALL_AFTER),
            "that the first was waited for for long says nothing"
        );
        stalls.moved(job, SECOND, start + 40 * SECOND);
        assert!(stalls.look(start + (40 + 399) * SECOND).is_empty(), "there was a pause of 40 s");
        assert_eq!(stalls.look(start + (40 + 400) * SECOND).len(), 1);

        let (mut slowest, _, start) = watched(None, STALL_AFTER_MAX);
        assert_eq!(slowest.look(start + STALL_AFTER_MAX).len(), 1);
        let (mut told, _, start) = watched(Some(SECOND), 30 * SECOND);
        assert_eq!(told.look(start + SECOND).len(), 1);
    }

    #[test]
    fn no_job_stalls_while_the_broker_does_not_work() {
        let (mut stalls, job, start) = watched(None, Duration::ZERO);
        stalls.suspend(false, start);
        assert_eq!(stalls.due(), Some(start + STALL_AFTER));
        stalls.suspend(true, start);
        let back = start + 9 * STALL_AFTER;
        assert!(stalls.due().is_none() && stalls.look(back).is_empty());
        stalls.suspend(false, back);
        assert_eq!(stalls.due(), Some(back + STALL_AFTER));
        stalls.moved(job, Duration::ZERO, back + SECOND);
        assert_eq!(stalls.look(back + SECOND + STALL_AFTER).len(), 1, "the outage was no pause to go by");
    }

    #[test]
    fn many_stalls_are_found_in_several_looks() {
        let (mut stalls, _, start) = watched(None, Duration::ZERO);
        (1..STALLS_AT_A_TIME + 1).for_each(|_| stalls.watch(JobId::generate(), SECOND, false, start));
        stalls.watch(JobId::generate(), SECOND, true, start);
        let now = start + STALL_AFTER;
        assert_eq!(stalls.look(now).len(), STALLS_AT_A_TIME);
        assert!(stalls.due().is_some_and(|due| due <= now));
        assert_eq!((stalls.look(now).len(), stalls.due()), (1, None), "one stalled before");
    }
}
