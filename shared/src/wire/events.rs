//! Live news, best effort: nobody waits for an event and nothing depends on one.

use serde::{Deserialize, Serialize};

use super::{Finished, Form, Malformed, Missing, decode, form};
use crate::{Account, JobId, Kind, Lane, Message, TaskIndex, WorkerId};

/// `gristmill.progress.v1`: how far a job is, from the sink, a few times a second while it moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// How many tasks have which outcome.
    pub account: Account,
    /// Whether the split is complete, so that `account.total` is final.
    pub sealed: bool,
    /// How long the finished tasks took, together, in microseconds of one slot.
    #[serde(default)]
    pub busy_us: u64,
}

form!(Progress, "gristmill.progress.v1");

/// `gristmill.worker.v1`: a worker is alive, every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerBeat {
    /// Who.
    pub worker: WorkerId,
    /// The lane it serves.
    pub lane: Lane,
    /// How many tasks it can run at a time.
    pub slots: u32,
    /// How many of its slots are running a batch.
    pub busy: u32,
    /// Tasks with an output, since it started.
    pub done: u64,
    /// Tries that ended in an error, since it started.
    pub errors: u64,
    /// The tasks that have held a thread for at least the time between two beats, the longest running first, at most
    /// [`RUNNING_MAX_TASKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<RunningTask>,
}

/// How many running tasks one [`WorkerBeat`] names.
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
    /// How many tasks the batch has.
    pub count: u32,
    /// The task that runs.
    pub index: TaskIndex,
    /// Which try it is: 1 for the first.
    pub attempt: u32,
    /// The number of the slot, from 0 on.
    pub slot: u32,
    /// Since when it runs, or when it was first seen to run, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether its thread has lost the slot, which other tasks use since then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stuck: bool,
    /// Whether the job was stopped or has ended, so that the task is of no use any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stopped: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

form!(WorkerBeat, "gristmill.worker.v1", jobless);

/// Everything that may come as an event.
#[derive(Debug)]
pub enum Event {
    /// A job moved.
    Progress(Progress),
    /// A worker is alive.
    Worker(WorkerBeat),
    /// A job stalls. The journal has it too.
    Missing(Missing),
    /// A job has ended. The journal has it too, under the same id, a little later.
    Finished(Finished),
}

impl Event {
    /// Reads an event.
    ///
    /// # Errors
    /// [`Malformed`] if it is none of these; readers pass over it.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        match message.form.as_str() {
            Progress::FORM => decode(message).map(Self::Progress),
            WorkerBeat::FORM => decode(message).map(Self::Worker),
            Missing::FORM => decode(message).map(Self::Missing),
            Finished::FORM => decode(message).map(Self::Finished),
            other => Err(Malformed::new(format_args!("no event has the type {other:?}"))),
        }
    }
}
