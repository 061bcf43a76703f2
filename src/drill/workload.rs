//! The jobs of a drill: one after the other, so that there is work as long as faults go on and not much longer.

use std::time::Duration;

use fastrand::Rng;
use gristmill_jobs::{Spin, SpinReport};
use gristmill_shared::JobId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::workspace::Site;

/// How long the work of a task takes a processor, in µs.
const TASK_MICROS: u32 = 1_000;
/// The share of tasks that fail their first one or two tries, as text for the command line.
const FAIL_RATE: &str = "0.01";
/// How many tries a task has. The load fails two at most, so no task may ever run out of them.
const MAX_ATTEMPTS: &str = "5";
/// How many tasks the first job has, when nothing is known of the fleet's speed.
const FIRST_JOB: u64 = 1_500;
/// For how long a later job keeps the fleet busy, at least and at most.
const BUSY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// How many tasks a job may have: a bound for what a measured speed may lead to.
const TASKS_MAX: u64 = 100_000;
/// How many tasks a message carries: few, as messages are what faults hit.
const BATCH: std::ops::RangeInclusive<u32> = 1..=4;

/// A job that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Submitted {
    pub(crate) job: JobId,
    pub(crate) tasks: u64,
    /// Decides the floats of its outputs, if they have any.
    pub(crate) float_seed: Option<u32>,
}

impl Submitted {
    /// The report of a run in which nothing ever went wrong.
    pub(crate) fn expected(&self) -> SpinReport {
        let (tasks, seed) = (self.tasks, self.float_seed.unwrap_or_default().into());
        Spin { tasks, floats: self.float_seed.is_some(), seed, ..Spin::default() }.expected()
    }
}

/// What is to be submitted, and until when.
#[derive(Debug)]
pub(super) struct Series {
    rng: Rng,
    began: Instant,
    length: Duration,
    enough: CancellationToken,
    /// The number of jobs submitted so far. Every other has floats, the first among them.
    jobs: u64,
    sending: Option<Sending>,
}

/// The job that is being sent.
#[derive(Debug)]
struct Sending {
    tasks: u64,
    float_seed: Option<u32>,
    /// Once it is known.
    job: Option<JobId>,
}

impl Sending {
    fn submitted(&self, job: JobId) -> Submitted {
        Submitted { job, tasks: self.tasks, float_seed: self.float_seed }
    }
}

impl Series {
    /// Jobs until it is `enough`, which will be about `length` from now.
    pub(super) fn new(seed: u64, length: Duration, enough: CancellationToken) -> Self {
        Self { rng: Rng::with_seed(seed), began: Instant::now(), length, enough, jobs: 0, sending: None }
    }

    /// What the next producer is to do: go on with the job that was not sent to its end, or submit another.
    /// `None` when there is nothing more to send.
    pub(super) async fn next(&mut self, site: &Site) -> Option<Vec<String>> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        if let Some(sending) = &mut self.sending {
            // A producer that died before it said its job's id has left a cursor, or nothing.
            let job = sending.job.or_else(|| orphan(site));
            if let Some(job) = job {
                if sending.job.replace(job).is_none() {
                    site.submitted(sending.submitted(job));
                }
                return Some(words(&["producer", "resume", &job.to_string()]));
            }
        }
        if self.enough.is_cancelled() {
            return None;
        }
        let left = self.length.saturating_sub(self.began.elapsed());
        let tasks = self.size(left, site.outcomes().await);
        let (seed, has_floats) = (self.rng.u32(..), self.jobs.is_multiple_of(2));
        self.jobs += 1;
        self.sending = Some(Sending { tasks, float_seed: has_floats.then_some(seed), job: None });
        let mut submit = words(&["producer", "submit", "spin", "--fail-rate", FAIL_RATE]);
        submit.extend(words(&["--max-attempts", MAX_ATTEMPTS]));
        for (flag, value) in [
            ("--tasks", tasks),
            ("--micros", TASK_MICROS.into()),
            ("--seed", seed.into()),
            ("--batch", self.rng.u32(BATCH).into()),
        ] {
            submit.extend([flag.to_owned(), value.to_string()]);
        }
        submit.extend(has_floats.then(|| "--floats".to_owned()));
        Some(submit)
    }

    /// As many tasks as the fleet has been seen to do in the time that is left, within bounds.
    fn size(&self, left: Duration, outcomes: u64) -> u64 {
        if outcomes == 0 {
            return FIRST_JOB;
        }
        let speed = outcomes as f64 / self.began.elapsed().as_secs_f64();
        let tasks = speed * left.clamp(BUSY.0, BUSY.1).as_secs_f64();
        (tasks as u64).clamp(100, TASKS_MAX)
    }

    /// The producer has printed its job's id.
    pub(super) fn opened(&mut self, site: &Site, line: &str) {
        let Some(sending) = &mut self.sending else { return };
        if let (None, Ok(job)) = (sending.job, line.parse::<JobId>()) {
            sending.job = Some(job);
            site.submitted(sending.submitted(job));
        }
    }

    /// The producer has sent its job to the end.
    pub(super) fn sent(&mut self) {
        self.sending = None;
    }
}

/// A job that has a cursor in the site's state and that nobody knows of.
fn orphan(site: &Site) -> Option<JobId> {
    let known = site.jobs();
    let cursors = std::fs::read_dir(site.cursors()).ok()?;
    let id = |name: &str| name.strip_suffix(".json")?.parse().ok();
    let mut ids = cursors.filter_map(|entry| id(entry.ok()?.file_name().to_str()?));
    ids.find(|id: &JobId| known.iter().all(|submitted| submitted.job != *id))
}
