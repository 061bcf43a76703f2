//! Events: live updates, best effort. No role waits for an event or depends on one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Finished, Malformed, Missing, WireMessage, decode, wire_message};
use crate::{Account, JobId, Kind, Lane, Message, TaskIndex, WorkerId};

/// `gristmill.progress.v1`: the progress of a job, from the sink, a few times a second while
/// outcomes come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The number of tasks by outcome.
    pub account: Account,
    /// True if the split is complete, so that `account.total` is final.
    pub sealed: bool,
    /// The total run time of the finished tasks, in microseconds of one slot.
    #[serde(default)]
    pub busy_us: u64,
}

wire_message!(Progress, "gristmill.progress.v1");

/// `gristmill.worker.v1`: the heartbeat of a worker, sent every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHeartbeat {
    /// The worker.
    pub worker: WorkerId,
    /// The lane it serves.
    pub lane: Lane,
    /// The number of tasks it can run at a time.
    pub slots: u32,
    /// The number of its slots that are running a batch.
    pub busy: u32,
    /// The number of tasks with an output, since it started.
    pub done: u64,
    /// The number of attempts that ended in an error, since it started.
    pub errors: u64,
    /// The tasks that have held a thread for at least the interval between two heartbeats, the
    /// longest running first, at most [`RUNNING_MAX_TASKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<RunningTask>,
}

/// The most running tasks that one [`WorkerHeartbeat`] names.
pub const RUNNING_MAX_TASKS: usize = 64;

/// A task that holds a thread of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The first task of the batch.
    pub first: TaskIndex,
    /// The number of tasks in the batch.
    pub count: u32,
    /// The task that runs.
    pub index: TaskIndex,
    /// The number of the attempt: 1 for the first.
    pub attempt: u32,
    /// The number of the slot, from 0 on.
    pub slot: u32,
    /// The time when it began, or was first observed, in milliseconds since 1970.
    pub since_ms: u64,
    /// True if its thread has lost the slot to other tasks.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stuck: bool,
    /// True if the job was stopped or has ended, so that the task is no longer needed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stopped: bool,
}

impl RunningTask {
    /// Returns the time for which the task had held its thread at `at_ms`, by the worker's clock,
    /// in whole seconds.
    #[must_use]
    pub fn age(&self, at_ms: u64) -> Duration {
        Duration::from_secs(at_ms.saturating_sub(self.since_ms) / 1_000)
    }

    /// Describes for people the slot or thread that the task held at `at_ms`, the time, and whether
    /// its job has ended.
    #[must_use]
    pub fn describe(&self, worker: &WorkerId, at_ms: u64) -> String {
        let Self { job, kind, index, slot, stuck, stopped, .. } = self;
        let held = if *stuck { "a former thread of slot" } else { "slot" };
        let ended = if *stopped { "; the job has ended" } else { "" };
        let age = self.age(at_ms);
        format!(
            "task {index} of job {job} (kind {kind}) has held {held} {slot} of {worker} for {age:?}{ended}"
        )
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

wire_message!(WorkerHeartbeat, "gristmill.worker.v1", jobless);

/// An event, of any type.
#[derive(Debug)]
pub enum Event {
    /// A job made progress.
    Progress(Progress),
    /// A worker is alive.
    Worker(WorkerHeartbeat),
    /// A job stalls. Also a fact of the journal.
    Missing(Missing),
    /// A job has ended. Also a fact of the journal, with the same id, a little later.
    Finished(Finished),
}

impl Event {
    /// Decodes an event.
    ///
    /// # Errors
    /// [`Malformed`] if it is of none of these types; readers skip it.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        match message.form.as_str() {
            Progress::TYPE => decode(message).map(Self::Progress),
            WorkerHeartbeat::TYPE => decode(message).map(Self::Worker),
            Missing::TYPE => decode(message).map(Self::Missing),
            Finished::TYPE => decode(message).map(Self::Finished),
            other => Err(Malformed::new(format_args!("no event has the type {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(since_ms: u64) -> RunningTask {
        RunningTask {
            job: JobId::generate(),
            kind: "spin".parse().unwrap(),
            first: TaskIndex(0),
            count: 9,
            index: TaskIndex(7),
            attempt: 1,
            slot: 3,
            since_ms,
            stuck: false,
            stopped: false,
        }
    }

    fn beat(running: Vec<RunningTask>) -> serde_json::Value {
        let (worker, lane) = ("mill-1".parse().unwrap(), Lane::default());
        serde_json::to_value(WorkerHeartbeat { worker, lane, slots: 1, busy: 0, done: 0, errors: 0, running })
            .unwrap()
    }

    #[test]
    fn idle_heartbeat_omits_long_tasks() {
        assert_eq!(beat(Vec::new()).get("running"), None);
        let named = &beat(vec![task(0)])["running"][0];
        assert_eq!((named.get("stuck"), named.get("stopped")), (None, None));
    }

    #[test]
    fn running_task_is_described_with_its_age() {
        let (worker, running) = ("mill-1".parse().unwrap(), task(5_000));
        let job = running.job;
        let said = running.describe(&worker, 80_900);
        assert_eq!(said, format!("task 7 of job {job} (kind spin) has held slot 3 of mill-1 for 75s"));
        let stuck = RunningTask { stuck: true, stopped: true, ..running };
        let said = stuck.describe(&worker, 4_000);
        let held = "has held a former thread of slot 3 of mill-1 for 0ns; the job has ended";
        assert_eq!(said, format!("task 7 of job {job} (kind spin) {held}"));
    }
}
