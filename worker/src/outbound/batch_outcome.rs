//! The outcomes of a batch: messages that must all be stored before the batch is settled.

use std::time::Duration;

use gristmill_shared::{
    Address, Chunk, FailureKind, Headers, Message, Outgoing, QueueRole, RETRY_DELAY_MAX, RetryDelay,
    TaskFailure, TaskIndex,
    metrics::{WORKER_BATCH_SECONDS, WORKER_BATCH_TASKS, WORKER_TASK_SECONDS, WORKER_TASKS},
    wire::{Batch, FailedTask, Malformed, Results, TASK_MAX_BYTES, clip_reason},
};
use serde_json::value::RawValue;

use super::{
    merge::{MergedOutputs, OutputSource, micros, results_message},
    result_publisher::Outbound,
};
use crate::{
    context::WorkerContext,
    poison::{SUSPECT_MAX_PARTS, TASK_MAX_LOSSES},
    release::{Release, Unfit},
};

/// A builder of the messages that follow from a batch.
#[derive(Clone, Copy)]
pub(crate) struct OutcomeBuilder<'a> {
    pub(crate) context: &'a WorkerContext,
    pub(crate) batch: &'a Batch<'a>,
    /// The headers of the batch's message, in the span in which its outcomes are made.
    pub(crate) headers: &'a Headers,
    /// The queue that delivered the batch.
    pub(crate) from: QueueRole,
}

/// The numbers of tasks of a chunk that have no outcome yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ChunkCounts {
    /// Tasks that are tried again later.
    pub(crate) retried: u64,
    /// Tasks that are left to other workers.
    pub(crate) released: u64,
}

/// Returns the number of messages among these that retry a task later.
pub(crate) fn count_retries(messages: &[Outgoing]) -> u64 {
    let later =
        |to: &Address| matches!(to, Address::Queue(queue) if matches!(queue.role, QueueRole::Retry(_)));
    messages.iter().filter(|outgoing| later(&outgoing.to)).count() as u64
}

impl OutcomeBuilder<'_> {
    /// Counts tasks of the batch with this outcome in the metrics.
    pub(crate) fn count(&self, outcome: &str, tasks: u64) {
        WORKER_TASKS.add([self.kind(), outcome], tasks);
    }

    /// Records the number of tasks that ran, and their total time, in the metrics.
    pub(crate) fn measure(&self, tasks: u32, took: Duration) {
        WORKER_BATCH_TASKS.record([self.kind()], tasks.into());
        WORKER_BATCH_SECONDS.record([self.kind()], took.as_secs_f64());
        WORKER_TASK_SECONDS.record([self.kind()], took.as_secs_f64() / f64::from(tasks.max(1)));
    }

    fn kind(&self) -> &str {
        self.context.registry.metric_label(&self.batch.kind)
    }

    /// Builds the messages of a chunk. Outputs and final failures go to the sink, other failed
    /// tasks to the retry ladder, each alone. Tasks that do not decode and came from another build
    /// go to other workers.
    pub(crate) fn build_chunk(&self, chunk: Chunk) -> (Outbound, ChunkCounts) {
        let failures = self.headers.attempt.saturating_add(1);
        let next_try = Headers { attempt: failures, ..self.headers.without_releases() };
        let Chunk { done, busy, failed: unfinished, .. } = chunk;
        let (released, unfinished) = self.release_undecodable(unfinished);
        let (retried, failed): (Vec<_>, Vec<_>) = unfinished.into_iter().partition(|failure| {
            !matches!(failure.trouble, FailureKind::Rejected(_) | FailureKind::Undecodable(_))
                && self.batch.may_retry(failures)
                && is_sendable(&failure.task)
        });
        let counts =
            ChunkCounts { retried: retried.len() as u64, released: released.iter().map(|(_, n)| *n).sum() };
        let mut messages: Vec<_> = released.into_iter().map(|(message, _)| message).collect();
        messages.extend(retried.iter().map(|failure| self.retry(failure, &next_try)));
        if !failed.is_empty() {
            let failed = failed.iter().map(|failure| self.record_failure(failure, failures)).collect();
            messages.push(self.failure_results(failed, if done.is_empty() { busy } else { Duration::ZERO }));
        }
        let outputs =
            MergedOutputs::new(OutputSource::from_batch(self.batch), self.headers.trace(), busy, done);
        (Outbound { outputs, messages }, counts)
    }

    /// Separates the tasks that are left to other workers, as messages with their numbers of tasks,
    /// from the others without an output.
    fn release_undecodable(&self, unfinished: Vec<TaskFailure>) -> (Vec<(Outgoing, u64)>, Vec<TaskFailure>) {
        if self.context.is_own_build(self.batch) {
            return (Vec::new(), unfinished);
        }
        let (undecodable, unfinished): (Vec<_>, Vec<_>) = unfinished
            .into_iter()
            .partition(|failure| matches!(failure.trouble, FailureKind::Undecodable(_)));
        let Some(first) = undecodable.first() else { return (Vec::new(), unfinished) };
        let unfit = Unfit::Tasks(self.failure_reason(first));
        let (to, headers) = match self.context.release(self.batch, self.headers, self.from, &unfit) {
            Release::Requeue(to, headers) => (to, headers),
            Release::Fail => {
                return (Vec::new(), unfinished.into_iter().chain(undecodable).collect());
            }
        };
        let consecutive = |before: &TaskFailure, next: &TaskFailure| before.index.plus(1) == next.index;
        let part = |run: &[TaskFailure]| {
            let tasks: Vec<&RawValue> = run.iter().map(|failure| &*failure.task).collect();
            let message = self.sub_batch(run[0].index, &tasks, &headers);
            (Outgoing { to: self.context.address(to), message }, run.len() as u64)
        };
        (undecodable.chunk_by(consecutive).map(part).collect(), unfinished)
    }

    /// Builds the message that requeues the tasks from index `from` on, at no cost.
    pub(crate) fn requeue_rest(&self, from: TaskIndex) -> Result<Option<Outgoing>, Malformed> {
        let tasks = self.batch.encoded_tasks()?;
        let from = from.max(self.batch.first);
        Ok(self.requeue_tasks(from, tasks.get(self.position(from)..).unwrap_or_default()))
    }

    /// Builds the messages for a batch whose task at `index` was given up: that task has failed,
    /// and the other tasks from `emitted_up_to` on are requeued at no cost.
    pub(crate) fn fail_overdue(
        &self,
        index: TaskIndex,
        emitted_up_to: TaskIndex,
    ) -> Result<Vec<Outgoing>, Malformed> {
        let tasks = self.batch.encoded_tasks()?;
        let begun = emitted_up_to.max(self.batch.first);
        let at = self.position(index);
        let Some(task) = tasks.get(at) else { return Err(Malformed::new("a task that it does not have")) };
        let mut chunk = Chunk::default();
        chunk.failed.push(TaskFailure { index, trouble: FailureKind::TimedOut, task: (*task).to_owned() });
        let (Outbound { mut messages, .. }, _) = self.build_chunk(chunk); // which has no outputs
        messages.extend(self.requeue_tasks(begun, tasks.get(self.position(begun)..at).unwrap_or_default()));
        messages.extend(self.requeue_tasks(index.plus(1), tasks.get(at + 1..).unwrap_or_default()));
        Ok(messages)
    }

    fn requeue_tasks(&self, first: TaskIndex, tasks: &[&RawValue]) -> Option<Outgoing> {
        if tasks.is_empty() {
            return None;
        }
        Some(self.context.requeue(self.sub_batch(first, tasks, self.headers), self.from))
    }

    fn position(&self, index: TaskIndex) -> usize {
        usize::try_from(index.0.saturating_sub(self.batch.first.0)).unwrap_or(usize::MAX)
    }

    /// Builds the messages that send the batch to the suspects, in parts.
    pub(crate) fn split_suspect(&self) -> Result<Vec<Outgoing>, Malformed> {
        let tasks = self.batch.encoded_tasks()?;
        let size = tasks.len().div_ceil(SUSPECT_MAX_PARTS).max(1);
        let mut first = self.batch.first;
        let mut parts = Vec::with_capacity(SUSPECT_MAX_PARTS);
        for part in tasks.chunks(size) {
            let message = self.sub_batch(first, part, self.headers);
            parts.push(Outgoing { to: self.context.address(QueueRole::Suspect), message });
            first = first.plus(part.len() as u64);
        }
        Ok(parts)
    }

    /// Builds the message for a single task that crashed one more worker: a failure, or another try
    /// among the suspects.
    pub(crate) fn record_crash(&self) -> Result<Outgoing, Malformed> {
        let tasks = self.batch.encoded_tasks()?;
        let loss = self.headers.loss.saturating_add(1);
        let (job, index) = (self.batch.job, self.batch.first);
        if loss < TASK_MAX_LOSSES {
            tracing::warn!(%job, %index, losses = loss, "a task crashed its worker; trying it again");
            let headers = Headers { loss, ..self.headers.clone() };
            let message = self.sub_batch(index, &tasks, &headers);
            return Ok(Outgoing { to: self.context.address(QueueRole::Suspect), message });
        }
        let reason = format!("its worker died {loss} times");
        tracing::warn!(%job, %index, reason, "a task failed for good");
        let failed = tasks.first().map(|task| FailedTask {
            index,
            reason: reason.as_str().into(),
            attempts: self.headers.attempt,
            losses: loss,
            task: if is_sendable(task) { task } else { RawValue::NULL },
        });
        Ok(self.failure_results(failed.into_iter().collect(), Duration::ZERO))
    }

    /// Builds the message of a failed task alone for the retry ladder; the rest of its batch does
    /// not run again.
    fn retry(&self, failure: &TaskFailure, headers: &Headers) -> Outgoing {
        let delay = match failure.trouble {
            FailureKind::Delayed(_, delay) => delay,
            _ => self.batch.retry_delay(headers.attempt),
        };
        let (step, rest) = RetryDelay::first_step(delay);
        let headers = &Headers { delay_ms: millis(rest), ..headers.clone() };
        let again_in = step.duration() + rest;
        let (job, index, attempt, reason) =
            (self.batch.job, failure.index, headers.attempt, self.failure_reason(failure));
        match self.context.count_failure(job) {
            Some(failures_of_job) => {
                tracing::warn!(%job, %index, attempt, ?again_in, reason, failures_of_job, "a task failed");
            }
            None => tracing::debug!(%job, %index, attempt, ?again_in, reason, "a task failed"),
        }
        let message = self.sub_batch(failure.index, &[&failure.task], headers);
        Outgoing { to: self.context.address(QueueRole::Retry(step)), message }
    }

    /// Logs a final failure, and returns it for the sink.
    fn record_failure<'t>(&self, failure: &'t TaskFailure, failures: u32) -> FailedTask<'t> {
        let (job, index, attempts, reason) =
            (self.batch.job, failure.index, failures, self.failure_reason(failure));
        match self.context.count_failure(job) {
            Some(failures_of_job) => {
                tracing::warn!(%job, %index, attempts, reason, failures_of_job, "a task failed for good");
            }
            None => tracing::debug!(%job, %index, attempts, reason, "a task failed for good"),
        }
        FailedTask {
            index: failure.index,
            reason: clip_reason(&reason).into_owned().into(),
            attempts: failures,
            losses: self.headers.loss,
            task: if is_sendable(&failure.task) { &failure.task } else { RawValue::NULL },
        }
    }

    fn failure_reason(&self, failure: &TaskFailure) -> String {
        match &failure.trouble {
            FailureKind::Failed(reason)
            | FailureKind::Rejected(reason)
            | FailureKind::Undecodable(reason)
            | FailureKind::Delayed(reason, _) => reason.clone(),
            FailureKind::TimedOut => {
                let limit = self.batch.policy.task_timeout().unwrap_or_default();
                format!("it ran longer than the job's task timeout of {limit:?}")
            }
            FailureKind::Stopped => "the job was stopped".into(),
        }
    }

    /// Makes a batch of some of the tasks.
    fn sub_batch(&self, first: TaskIndex, tasks: &[&RawValue], headers: &Headers) -> Message {
        let count =
            u32::try_from(tasks.len()).expect("no more than the batch has, which counts them in 32 bits");
        let tasks = Batch::pack(tasks);
        self.batch.derive(first, count, &tasks).to_message(headers.clone(), self.context.id.as_str())
    }

    /// Makes the message to the sink with tasks that failed for good.
    fn failure_results(&self, failed: Vec<FailedTask<'_>>, busy: Duration) -> Outgoing {
        let results = Results {
            job: self.batch.job,
            round: self.batch.round,
            worker: self.context.id.clone(),
            busy_us: micros(busy),
            done: Vec::new(),
            failed,
            version: self.batch.version,
            build: self.context.build.clone(),
        };
        results_message(self.context, &results, self.headers.trace())
    }
}

/// Builds the message that moves a retried batch whose delay is not over to its next step, for at
/// least the shortest step, at no cost. Returns `None` if the delay is over.
pub(crate) fn next_retry_step(context: &WorkerContext, message: &Message) -> Option<Outgoing> {
    let rest = Duration::from_millis(message.headers.delay_ms.into()).min(RETRY_DELAY_MAX);
    let step = RetryDelay::within(rest)?;
    let headers = Headers { delay_ms: millis(rest - step.duration()), ..message.headers.follow() };
    Some(Outgoing {
        to: context.address(QueueRole::Retry(step)),
        message: Message { headers, ..message.clone() },
    })
}

/// Returns a delay in the milliseconds of its header. No delay exceeds [`RETRY_DELAY_MAX`], which
/// fits.
fn millis(delay: Duration) -> u32 {
    u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)
}

/// True if a task is within the size limit of tasks. Foreign messages may have larger ones, which
/// cannot be sent on.
fn is_sendable(task: &RawValue) -> bool {
    task.get().len() <= TASK_MAX_BYTES
}
