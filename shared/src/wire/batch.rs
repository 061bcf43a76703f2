//! Batches: consecutive tasks of one job, sent by a producer to a worker.

use std::time::Duration;

use serde::{Deserialize, Serialize, ser::Error as _};
use serde_json::value::RawValue;

use super::{Malformed, Opened, WireMessage, is_zero, wire_message};
use crate::{BuildId, Headers, JobId, Kind, Message, Policy, Round, TaskIndex, TraceParent, finite};

/// `gristmill.batch.v1`: everything a worker needs to run `count` tasks of a job, from index
/// `first` on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Batch<'a> {
    /// The job.
    pub job: JobId,
    /// The job's kind.
    pub kind: Kind,
    /// The job's parameters.
    #[serde(borrow)]
    pub spec: &'a RawValue,
    /// The retry policy of its tasks.
    pub policy: Policy,
    /// The round these tasks belong to.
    pub round: Round,
    /// Reserved for pipelines of several stages; 0.
    #[serde(default)]
    pub stage: u32,
    /// The number of failures of these tasks before this round began. Attempt numbers continue from
    /// it; the budget of attempts starts again.
    #[serde(default)]
    pub spent: u32,
    /// The first task's index.
    pub first: TaskIndex,
    /// The number of tasks. A body whose `tasks` has another length is malformed.
    pub count: u32,
    /// A JSON array of the tasks.
    #[serde(borrow)]
    pub tasks: &'a RawValue,
    /// The [version](crate::Job::VERSION) of the job's code in this round. Workers of another
    /// version release the batch.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u32,
    /// The build of the program that submitted the job, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
}

wire_message!(Batch<'_>, "gristmill.batch.v1");

impl<'a> Batch<'a> {
    /// Creates the batch of `count` tasks of a job from index `first` on, for round 0.
    #[must_use]
    pub fn new(job: &'a Opened, first: TaskIndex, count: u32, tasks: &'a RawValue) -> Self {
        Self {
            job: job.job,
            kind: job.kind.clone(),
            spec: &job.spec,
            policy: job.policy.clone(),
            round: Round(0),
            stage: 0,
            spent: 0,
            first,
            count,
            tasks,
            version: job.version,
            build: job.build.clone(),
        }
    }

    /// Returns a batch of some of the tasks: `count` of them from index `first` on.
    #[must_use]
    pub fn derive<'b>(&self, first: TaskIndex, count: u32, tasks: &'b RawValue) -> Batch<'b>
    where
        'a: 'b,
    {
        Batch { first, count, tasks, ..self.clone() }
    }

    /// True if a task that has now failed `failures` times may be retried.
    #[must_use]
    pub fn may_retry(&self, failures: u32) -> bool {
        failures.saturating_sub(self.spent) < self.policy.max_attempts
    }

    /// Returns the delay before that retry. Delays start again with each round, as the budget does.
    #[must_use]
    pub fn retry_delay(&self, failures: u32) -> Duration {
        self.policy.retry_delay(failures.saturating_sub(self.spent))
    }

    /// Returns the encoded tasks, one by one.
    ///
    /// # Errors
    /// If `tasks` is no array of `count` elements.
    pub fn encoded_tasks(&self) -> Result<Vec<&'a RawValue>, Malformed> {
        let tasks: Vec<&RawValue> = serde_json::from_str(self.tasks.get())
            .map_err(|error| Malformed::new(format_args!("the batch's tasks are no array: {error}")))?;
        if tasks.len() != self.count as usize {
            return Err(self.wrong_count(tasks.len()));
        }
        Ok(tasks)
    }

    /// Packs encoded tasks as the `tasks` of a batch.
    #[must_use]
    pub fn pack(tasks: &[&RawValue]) -> Box<RawValue> {
        serde_json::value::to_raw_value(tasks).expect("an array of JSON values is JSON")
    }

    pub(crate) fn wrong_count(&self, found: usize) -> Malformed {
        Malformed::new(format_args!("the batch says it has {} tasks, but has {found}", self.count))
    }

    /// Packs the batch into a message. `headers` carry the number of earlier failures from message
    /// to message, and the trace, which begins here if there is none.
    #[must_use]
    pub fn to_message(&self, mut headers: Headers, app: &str) -> Message {
        let Self { job, first, count, round, .. } = self;
        let id = format!("{job}/{first}+{count}@{round}.{}", headers.attempt);
        headers.traceparent.get_or_insert_with(|| TraceParent::for_message(*job, &id).to_string());
        Message { headers, ..self.message(id, app) }
    }
}

/// A growing JSON array of tasks, filled by a split.
#[derive(Debug, Clone, Default)]
pub struct PackedTasks {
    json: Vec<u8>,
    count: u32,
}

impl PackedTasks {
    /// Returns the number of tasks.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the encoded size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.json.len()
    }

    /// Appends a task and returns its encoded form.
    ///
    /// # Errors
    /// If the task does not encode as JSON, or contains a float that is not finite.
    pub(crate) fn push(&mut self, task: &impl Serialize) -> Result<&[u8], serde_json::Error> {
        let before = self.json.len();
        self.json.push(if self.count == 0 { b'[' } else { b',' });
        let start = self.json.len();
        let encoded = serde_json::to_writer(&mut self.json, task).and_then(|()| {
            finite::check("task", task, &self.json[start..]).map_err(serde_json::Error::custom)
        });
        if let Err(error) = encoded {
            self.json.truncate(before);
            return Err(error);
        }
        self.count += 1;
        Ok(&self.json[start..])
    }

    /// Returns the finished array.
    #[must_use]
    pub fn finish(mut self) -> Box<RawValue> {
        if self.count == 0 {
            self.json.push(b'[');
        }
        self.json.push(b']');
        let json = String::from_utf8(self.json).expect("serde_json writes UTF-8");
        RawValue::from_string(json).expect("an array of serialised values is JSON")
    }
}
