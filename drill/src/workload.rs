//! The jobs of a drill: one after the other, so that there is work until the last fault and not
//! much longer.

use std::time::Duration;

use fastrand::Rng;
use gristmill_shared::JobId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{drill_job::DrillJob, workspace::Workspace};

/// Processor time of a task, in µs.
const TASK_MICROS: u32 = 1_000;
/// The share of tasks that fail their first one or two tries, as text for the command line.
const FAIL_RATE: &str = "0.01";
/// Number of tries of a task. The load fails two at most, so no task may ever run out of them.
const MAX_ATTEMPTS: &str = "5";
/// Number of tasks of the first job, when the fleet's speed is unknown.
const FIRST_JOB_TASKS: u64 = 1_500;
/// Time for which a later job keeps the fleet busy, at least and at most.
const BUSY_RANGE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// Highest number of tasks of a job, whatever the measured speed.
const TASKS_MAX: u64 = 100_000;
/// Number of tasks of a message: few, since faults hit messages.
const BATCH_TASKS: std::ops::RangeInclusive<u32> = 1..=4;

/// The sequence of jobs, and its end.
#[derive(Debug)]
pub(super) struct Workload {
    rng: Rng,
    began: Instant,
    length: Duration,
    enough: CancellationToken,
    /// Number of jobs submitted so far. Every other one has floats, beginning with the first.
    jobs: u64,
    sending: Option<SendingJob>,
}

/// The job that is being sent.
#[derive(Debug)]
struct SendingJob {
    tasks: u64,
    float_seed: Option<u32>,
    /// Its id, once it is known.
    job: Option<JobId>,
}

impl SendingJob {
    fn drill_job(&self, job: JobId) -> DrillJob {
        DrillJob { job, tasks: self.tasks, float_seed: self.float_seed }
    }
}

impl Workload {
    /// Creates a workload that goes on until `enough` is cancelled, about `length` from now.
    pub(super) fn new(seed: u64, length: Duration, enough: CancellationToken) -> Self {
        Self { rng: Rng::with_seed(seed), began: Instant::now(), length, enough, jobs: 0, sending: None }
    }

    /// Returns the arguments of the next producer, which resumes an unsent job or submits another
    /// one. `None` if nothing more is to be sent.
    pub(super) async fn next_command(&mut self, workspace: &Workspace) -> Option<Vec<String>> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        if let Some(sending) = &mut self.sending {
            // A producer that died before it printed its job's id has left a cursor, or nothing.
            let job = sending.job.or_else(|| find_orphaned_job(workspace));
            if let Some(job) = job {
                if sending.job.replace(job).is_none() {
                    workspace.record_job(sending.drill_job(job));
                }
                return Some(words(&["producer", "resume", &job.to_string()]));
            }
        }
        if self.enough.is_cancelled() {
            return None;
        }
        let left = self.length.saturating_sub(self.began.elapsed());
        let tasks = self.job_size(left, workspace.outcome_count().await);
        let (seed, has_floats) = (self.rng.u32(..), self.jobs.is_multiple_of(2));
        self.jobs += 1;
        self.sending = Some(SendingJob { tasks, float_seed: has_floats.then_some(seed), job: None });
        let mut submit = words(&["producer", "submit", "spin", "--fail-rate", FAIL_RATE]);
        submit.extend(words(&["--max-attempts", MAX_ATTEMPTS]));
        for (flag, value) in [
            ("--tasks", tasks),
            ("--micros", TASK_MICROS.into()),
            ("--seed", seed.into()),
            ("--batch", self.rng.u32(BATCH_TASKS).into()),
        ] {
            submit.extend([flag.to_owned(), value.to_string()]);
        }
        submit.extend(has_floats.then(|| "--floats".to_owned()));
        Some(submit)
    }

    /// Returns the number of tasks that the fleet does in the time that is left, at the speed
    /// measured so far, within bounds.
    fn job_size(&self, left: Duration, outcomes: u64) -> u64 {
        if outcomes == 0 {
            return FIRST_JOB_TASKS;
        }
        let speed = outcomes as f64 / self.began.elapsed().as_secs_f64();
        let tasks = speed * left.clamp(BUSY_RANGE.0, BUSY_RANGE.1).as_secs_f64();
        (tasks as u64).clamp(100, TASKS_MAX)
    }

    /// Records the id that a producer has printed.
    pub(super) fn note_job_id(&mut self, workspace: &Workspace, line: &str) {
        let Some(sending) = &mut self.sending else { return };
        if let (None, Ok(job)) = (sending.job, line.parse::<JobId>()) {
            sending.job = Some(job);
            workspace.record_job(sending.drill_job(job));
        }
    }

    /// Records that the job is sent to its end.
    pub(super) fn note_sent(&mut self) {
        self.sending = None;
    }
}

/// Returns a job that has a cursor in the workspace and is not known yet.
fn find_orphaned_job(workspace: &Workspace) -> Option<JobId> {
    let known = workspace.jobs();
    let cursors = std::fs::read_dir(workspace.cursors()).ok()?;
    let id = |name: &str| name.strip_suffix(".json")?.parse().ok();
    let mut ids = cursors.filter_map(|entry| id(entry.ok()?.file_name().to_str()?));
    ids.find(|id: &JobId| known.iter().all(|submitted| submitted.job != *id))
}
