//! What follows from a batch: messages, of which each must be stored before the batch is settled.

use std::time::Duration;

use gristmill_shared::{
    Address, Chunk, Headers, Message, Outgoing, QueueRole, RETRY_DELAY_MAX, RetryDelay, TaskFailure,
    TaskIndex, Trouble,
    meter::{WORKER_BATCH_SECONDS, WORKER_BATCH_TASKS, WORKER_TASK_SECONDS, WORKER_TASKS},
    wire::{Batch, FailedTask, Malformed, Results, TASK_MAX_BYTES, clip_reason},
};
use serde_json::value::RawValue;

use super::{
    merge::{Outputs, Source, micros, results_message},
    publisher::Upshot,
};
use crate::{
    context::Shop,
    poison::{LOSSES_MAX, SUSPECT_PARTS},
    release::{Release, Unfit},
};

/// What may follow from a batch.
#[derive(Clone, Copy)]
pub(crate) struct Sequel<'a> {
    pub(crate) shop: &'a Shop,
    pub(crate) batch: &'a Batch<'a>,
    /// What the batch's messages said, and in whose span what follows is made.
    pub(crate) headers: &'a Headers,
    /// Where the batch came from.
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

/// How many of these messages are tasks that are tried again later.
pub(crate) fn retried(messages: &[Outgoing]) -> u64 {
    let later =
        |to: &Address| matches!(to, Address::Queue(queue) if matches!(queue.role, QueueRole::Retry(_)));
    messages.iter().filter(|outgoing| later(&outgoing.to)).count() as u64
}

impl Sequel<'_> {
    /// So many tasks of the batch came to this.
    pub(crate) fn count(&self, outcome: &str, tasks: u64) {
        WORKER_TASKS.add([self.kind(), outcome], tasks);
    }

    /// So many of its tasks ran, and took so long together.
    pub(crate) fn measure(&self, tasks: u32, took: Duration) {
        WORKER_BATCH_TASKS.record([self.kind()], tasks.into());
        WORKER_BATCH_SECONDS.record([self.kind()], took.as_secs_f64());
        WORKER_TASK_SECONDS.record([self.kind()], took.as_secs_f64() / f64::from(tasks.max(1)));
    }

    fn kind(&self) -> &str {
        self.shop.registry.label(&self.batch.kind)
    }

    /// Makes the messages of a chunk. Outputs and failures for good go to the sink, other failed
    /// tasks up the ladder, each alone. Tasks that do not decode and came from another build go to
    /// other workers.
    pub(crate) fn of_chunk(&self, chunk: Chunk) -> (Upshot, ChunkCounts) {
        let failures = self.headers.attempt.saturating_add(1);
        let next_try = Headers { attempt: failures, ..self.headers.begun() };
        let Chunk { done, busy, failed: troubled, .. } = chunk;
        let (released, troubled) = self.release_undecodable(troubled);
        let (retried, failed): (Vec<_>, Vec<_>) = troubled.into_iter().partition(|failure| {
            !matches!(failure.trouble, Trouble::Rejected(_) | Trouble::Undecodable(_))
                && self.batch.tries_again(failures)
                && travels(&failure.task)
        });
        let counts =
            ChunkCounts { retried: retried.len() as u64, released: released.iter().map(|(_, n)| *n).sum() };
        let mut messages: Vec<_> = released.into_iter().map(|(message, _)| message).collect();
        messages.extend(retried.iter().map(|failure| self.retry(failure, &next_try)));
        if !failed.is_empty() {
            let failed = failed.iter().map(|failure| self.for_good(failure, failures)).collect();
            messages.push(self.results(failed, if done.is_empty() { busy } else { Duration::ZERO }));
        }
        let outputs = Outputs::new(Source::of(self.batch), self.headers.trace(), busy, done);
        (Upshot { outputs, messages }, counts)
    }

    /// Takes the tasks that are left to other workers out of those without an output: as messages,
    /// each with its number of tasks.
    fn release_undecodable(&self, troubled: Vec<TaskFailure>) -> (Vec<(Outgoing, u64)>, Vec<TaskFailure>) {
        if self.shop.is_own_build(self.batch) {
            return (Vec::new(), troubled);
        }
        let (undecodable, troubled): (Vec<_>, Vec<_>) =
            troubled.into_iter().partition(|failure| matches!(failure.trouble, Trouble::Undecodable(_)));
        let Some(first) = undecodable.first() else { return (Vec::new(), troubled) };
        let unfit = Unfit::Tasks(self.why(first));
        let (to, headers) = match self.shop.release(self.batch, self.headers, self.from, &unfit) {
            Release::To(to, headers) => (to, headers),
            Release::Never => {
                return (Vec::new(), troubled.into_iter().chain(undecodable).collect());
            }
        };
        let consecutive = |before: &TaskFailure, next: &TaskFailure| before.index.plus(1) == next.index;
        let part = |run: &[TaskFailure]| {
            let tasks: Vec<&RawValue> = run.iter().map(|failure| &*failure.task).collect();
            let message = self.part(run[0].index, &tasks, &headers);
            (Outgoing { to: self.shop.to(to), message }, run.len() as u64)
        };
        (undecodable.chunk_by(consecutive).map(part).collect(), troubled)
    }

    /// The tasks from index `from` on, for whoever takes them next, at no cost.
    pub(crate) fn of_leaving(&self, from: TaskIndex) -> Result<Option<Outgoing>, Malformed> {
        let tasks = self.batch.each()?;
        let from = from.max(self.batch.first);
        Ok(self.back(from, tasks.get(self.place(from)..).unwrap_or_default()))
    }

    /// The task at `index` was not awaited to its end: it has failed. The others from `handed_on` on are given back, at
    /// no cost.
    pub(crate) fn of_overdue(
        &self,
        index: TaskIndex,
        handed_on: TaskIndex,
    ) -> Result<Vec<Outgoing>, Malformed> {
        let tasks = self.batch.each()?;
        let begun = handed_on.max(self.batch.first);
        let at = self.place(index);
        let Some(task) = tasks.get(at) else { return Err(Malformed::new("a task that it does not have")) };
        let mut chunk = Chunk::default();
        chunk.failed.push(TaskFailure { index, trouble: Trouble::TimedOut, task: (*task).to_owned() });
        let (Upshot { mut messages, .. }, _) = self.of_chunk(chunk); // which has no outputs
        messages.extend(self.back(begun, tasks.get(self.place(begun)..at).unwrap_or_default()));
        messages.extend(self.back(index.plus(1), tasks.get(at + 1..).unwrap_or_default()));
        Ok(messages)
    }

    fn back(&self, first: TaskIndex, tasks: &[&RawValue]) -> Option<Outgoing> {
        if tasks.is_empty() {
            return None;
        }
        Some(self.shop.hand_back(self.part(first, tasks, self.headers), self.from))
    }

    fn place(&self, index: TaskIndex) -> usize {
        usize::try_from(index.0.saturating_sub(self.batch.first.0)).unwrap_or(usize::MAX)
    }

    /// The batch in parts, to the suspects.
    pub(crate) fn of_suspicion(&self) -> Result<Vec<Outgoing>, Malformed> {
        let tasks = self.batch.each()?;
        let size = tasks.len().div_ceil(SUSPECT_PARTS).max(1);
        let mut first = self.batch.first;
        let mut parts = Vec::with_capacity(SUSPECT_PARTS);
        for part in tasks.chunks(size) {
            let message = self.part(first, part, self.headers);
            parts.push(Outgoing { to: self.shop.to(QueueRole::Suspect), message });
            first = first.plus(part.len() as u64);
        }
        Ok(parts)
    }

    /// The batch's only task has cost one more worker its life. It is a failure, or tried again among the suspects.
    pub(crate) fn of_loss(&self) -> Result<Outgoing, Malformed> {
        let tasks = self.batch.each()?;
        let loss = self.headers.loss.saturating_add(1);
        let (job, index) = (self.batch.job, self.batch.first);
        if loss < LOSSES_MAX {
            tracing::warn!(%job, %index, losses = loss, "a task's worker died with it; trying it again");
            let headers = Headers { loss, ..self.headers.clone() };
            let message = self.part(index, &tasks, &headers);
            return Ok(Outgoing { to: self.shop.to(QueueRole::Suspect), message });
        }
        let reason = format!("its worker died {loss} times");
        tracing::warn!(%job, %index, reason, "a task failed for good");
        let failed = tasks.first().map(|task| FailedTask {
            index,
            reason: reason.as_str().into(),
            attempts: self.headers.attempt,
            losses: loss,
            task: if travels(task) { task } else { RawValue::NULL },
        });
        Ok(self.results(failed.into_iter().collect(), Duration::ZERO))
    }

    /// The failed task alone, up the ladder; the rest of its batch is not run again.
    fn retry(&self, failure: &TaskFailure, headers: &Headers) -> Outgoing {
        let delay = match failure.trouble {
            Trouble::Delayed(_, delay) => delay,
            _ => self.batch.retry_delay(headers.attempt),
        };
        let (step, rest) = RetryDelay::first_step(delay);
        let headers = &Headers { delay_ms: millis(rest), ..headers.clone() };
        let again_in = step.duration() + rest;
        let (job, index, attempt, reason) =
            (self.batch.job, failure.index, headers.attempt, self.why(failure));
        match self.shop.complaints.one_more(job) {
            Some(failures_of_job) => {
                tracing::warn!(%job, %index, attempt, ?again_in, reason, failures_of_job, "a task failed");
            }
            None => tracing::debug!(%job, %index, attempt, ?again_in, reason, "a task failed"),
        }
        let message = self.part(failure.index, &[&failure.task], headers);
        Outgoing { to: self.shop.to(QueueRole::Retry(step)), message }
    }

    fn for_good<'t>(&self, failure: &'t TaskFailure, failures: u32) -> FailedTask<'t> {
        let (job, index, attempts, reason) = (self.batch.job, failure.index, failures, self.why(failure));
        match self.shop.complaints.one_more(job) {
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
            task: if travels(&failure.task) { &failure.task } else { RawValue::NULL },
        }
    }

    fn why(&self, failure: &TaskFailure) -> String {
        match &failure.trouble {
            Trouble::Failed(reason)
            | Trouble::Rejected(reason)
            | Trouble::Undecodable(reason)
            | Trouble::Delayed(reason, _) => reason.clone(),
            Trouble::TimedOut => {
                let limit = self.batch.policy.task_timeout().unwrap_or_default();
                format!("it ran longer than the job's task timeout of {limit:?}")
            }
            Trouble::Stopped => "the job was stopped".into(),
        }
    }

    /// Some of the batch's tasks as a batch of their own.
    fn part(&self, first: TaskIndex, tasks: &[&RawValue], headers: &Headers) -> Message {
        let count =
            u32::try_from(tasks.len()).expect("no more than the batch has, which counts them in 32 bits");
        let tasks = Batch::pack(tasks);
        self.batch.derive(first, count, &tasks).to_message(headers.clone(), self.shop.id.as_str())
    }

    /// Tells the sink of tasks that failed for good.
    fn results(&self, failed: Vec<FailedTask<'_>>, busy: Duration) -> Outgoing {
        let results = Results {
            job: self.batch.job,
            round: self.batch.round,
            worker: self.shop.id.clone(),
            busy_us: micros(busy),
            done: Vec::new(),
            failed,
            version: self.batch.version,
            build: self.shop.build.clone(),
        };
        results_message(self.shop, &results, self.headers.trace())
    }
}

/// Moves a retried batch that has still to wait to its next step, for at least the shortest step,
/// at no cost to the batch.
pub(crate) fn next_wait(shop: &Shop, message: &Message) -> Option<Outgoing> {
    let rest = Duration::from_millis(message.headers.delay_ms.into()).min(RETRY_DELAY_MAX);
    let step = RetryDelay::within(rest)?;
    let headers = Headers { delay_ms: millis(rest - step.duration()), ..message.headers.follow() };
    Some(Outgoing { to: shop.to(QueueRole::Retry(step)), message: Message { headers, ..message.clone() } })
}

/// A delay as its header tells it. No delay is longer than [`RETRY_DELAY_MAX`], for which there is
/// room.
fn millis(delay: Duration) -> u32 {
    u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)
}

/// Whether a task is as small as tasks are; others may send larger ones, which cannot be sent on.
fn travels(task: &RawValue) -> bool {
    task.get().len() <= TASK_MAX_BYTES
}
