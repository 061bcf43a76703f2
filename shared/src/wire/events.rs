//! Live news, best effort: nobody waits for an event and nothing depends on one.

use serde::{Deserialize, Serialize};

use super::{Finished, Form, Malformed, Missing, decode, form};
use crate::{Account, JobId, Lane, Message, WorkerId};

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
