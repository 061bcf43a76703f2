//! One slot: a thread that runs one task at a time. The only place where a worker runs user code.

use std::sync::{Arc, atomic::Ordering};

use gristmill_shared::{
    AnyJob, BatchRun, Chunk, Headers, Message, OpenError, Outgoing, QueueRole, RetryDelay, TaskContext,
    TaskFailure, TaskIndex, Trouble,
    wire::{self, Batch, DoneSpan, FailedTask, Form, Malformed, Results, TASK_MAX_BYTES, clip_reason},
};
use serde_json::value::RawValue;

use crate::{
    handoff::Handoff,
    in_hand::InHand,
    shop::{Shop, handoff},
};

/// A message from one of the lane's queues, and the right to settle it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) message: Message,
    pub(crate) from: QueueRole,
    pub(crate) batch: Arc<InHand>,
}

/// Runs until the queue of work is closed and empty. Blocks while the broker takes no outcomes.
pub(crate) fn run(shop: &Shop, work: &flume::Receiver<Work>, handoffs: &flume::Sender<Handoff>) {
    for Work { message, from, batch } in work {
        shop.counts.busy.fetch_add(1, Ordering::Relaxed);
        let run = Run { shop, batch: &batch, handoffs };
        if shop.halt.is_stopped() {
            run.send(vec![shop.hand_back(message)]);
        } else {
            shop.counts.batches.fetch_add(1, Ordering::Relaxed);
            run.work_on(message, from);
        }
        batch.close();
        shop.counts.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Run<'a> {
    shop: &'a Shop,
    batch: &'a Arc<InHand>,
    handoffs: &'a flume::Sender<Handoff>,
}

impl Run<'_> {
    fn send(&self, messages: Vec<Outgoing>) {
        // The receiver goes only when the whole worker ends with an error; the batch then stays unsettled.
        let _ = self.handoffs.send(handoff(messages, self.batch));
    }

    fn work_on(&self, message: Message, from: QueueRole) {
        let reason = {
            let batch = match wire::decode::<Batch<'_>>(&message) {
                Ok(batch) => batch,
                Err(malformed) => {
                    return self.send(vec![self.shop.bury(message.clone(), from, &malformed.reason)]);
                }
            };
            match self.shop.jobs.open(&self.shop.registry, &batch) {
                Ok(job) => match self.run_tasks(&*job, &batch, &message.headers) {
                    Ok(()) => return,
                    Err(malformed) => malformed.reason,
                },
                Err(OpenError::Spec(error)) => error.to_string(),
                Err(OpenError::UnknownKind) => {
                    if self.shop.board.stop_signal(batch.job, batch.round).is_stopped() {
                        return self.skip(&batch);
                    }
                    let passed_on = self.shop.pass_on(message.clone(), batch.job, batch.kind.as_str());
                    return self.send(vec![passed_on]);
                }
            }
        };
        self.send(vec![self.shop.bury(message, from, &reason)]);
    }

    fn run_tasks(&self, job: &dyn AnyJob, batch: &Batch<'_>, headers: &Headers) -> Result<(), Malformed> {
        let stop = self.shop.board.stop_signal(batch.job, batch.round);
        if stop.is_stopped() {
            self.skip(batch);
            return Ok(());
        }
        let cx = TaskContext::new(batch.job, batch.first, headers.attempt, stop.clone());
        let mut hand_on = |chunk| self.hand_on(batch, headers, chunk);
        let ran = job.process_batch(
            batch,
            &mut BatchRun::new(cx, &batch.policy, self.shop.halt.clone(), &mut hand_on),
        )?;
        if ran < batch.count && !stop.is_stopped() {
            let first = batch.first.plus(ran.into());
            let rest = batch.rest(first)?;
            let message =
                again(batch, first, batch.count - ran, &rest).to_message(headers.clone(), self.app());
            self.send(vec![self.shop.hand_back(message)]);
        }
        Ok(())
    }

    /// Nobody needs this batch any more.
    fn skip(&self, batch: &Batch<'_>) {
        self.shop.counts.skipped.fetch_add(batch.count.into(), Ordering::Relaxed);
    }

    fn hand_on(&self, batch: &Batch<'_>, headers: &Headers, chunk: Chunk) {
        let done_tasks = chunk.done.iter().map(|done| u64::from(done.count)).sum();
        self.shop.counts.done.fetch_add(done_tasks, Ordering::Relaxed);
        self.shop.counts.errors.fetch_add(chunk.failed.len() as u64, Ordering::Relaxed);

        let failures = headers.attempt.saturating_add(1);
        let next_try = Headers { attempt: failures, ..headers.clone() };
        let (retried, failed): (Vec<_>, Vec<_>) = chunk.failed.iter().partition(|failure| {
            !matches!(failure.trouble, Trouble::Rejected(_))
                && batch.tries_again(failures)
                && travels(&failure.task)
        });
        let mut messages: Vec<_> =
            retried.into_iter().filter_map(|failure| self.retry(batch, failure, &next_try)).collect();
        let outputs: Vec<_> =
            chunk.done.into_iter().map(|done| (done.first, done.count, done.into_outputs())).collect();
        if !outputs.is_empty() || !failed.is_empty() {
            let results = Results {
                job: batch.job,
                round: batch.round,
                worker: self.shop.id.clone(),
                busy_us: u64::try_from(chunk.busy.as_micros()).unwrap_or(u64::MAX),
                done: outputs
                    .iter()
                    .map(|(first, count, outputs)| DoneSpan { first: *first, count: *count, outputs })
                    .collect(),
                failed: failed.into_iter().map(|failure| for_good(batch, failure, failures)).collect(),
            };
            let id = format!("{}/{}#{}", batch.job, self.shop.id, self.shop.message_number());
            let message = results.message(id, self.app());
            messages.push(Outgoing { to: self.shop.to(QueueRole::Results), message });
        }
        self.send(messages);
    }

    /// The failed task alone, up the ladder; the rest of its batch is not run again.
    fn retry(&self, batch: &Batch<'_>, failure: &TaskFailure, headers: &Headers) -> Option<Outgoing> {
        let delay = RetryDelay::after(headers.attempt);
        tracing::debug!(
            job = %batch.job, index = %failure.index, attempt = headers.attempt, again_in = %delay,
            reason = why(batch, failure), "a task failed"
        );
        let task = RawValue::from_string(format!("[{}]", failure.task.get())).ok()?;
        let message = again(batch, failure.index, 1, &task).to_message(headers.clone(), self.app());
        Some(Outgoing { to: self.shop.to(QueueRole::Retry(delay)), message })
    }

    fn app(&self) -> &str {
        self.shop.id.as_str()
    }
}

/// Some of a batch's tasks as a batch of their own.
fn again<'a>(batch: &Batch<'a>, first: TaskIndex, count: u32, tasks: &'a RawValue) -> Batch<'a> {
    Batch { first, count, tasks, ..batch.clone() }
}

fn for_good<'a>(batch: &Batch<'_>, failure: &'a TaskFailure, failures: u32) -> FailedTask<'a> {
    let reason = why(batch, failure);
    tracing::info!(job = %batch.job, index = %failure.index, attempts = failures, reason, "a task failed for good");
    FailedTask {
        index: failure.index,
        reason: clip_reason(&reason).into_owned().into(),
        attempts: failures,
        losses: 0,
        task: if travels(&failure.task) { &failure.task } else { RawValue::NULL },
    }
}

/// Whether a task is as small as tasks are; others may send larger ones, which cannot be sent on.
fn travels(task: &RawValue) -> bool {
    task.get().len() <= TASK_MAX_BYTES
}

fn why(batch: &Batch<'_>, failure: &TaskFailure) -> String {
    match &failure.trouble {
        Trouble::Failed(reason) | Trouble::Rejected(reason) => reason.clone(),
        Trouble::TimedOut => {
            format!("it took longer than the job's task timeout of {:?}", batch.policy.task_timeout())
        }
        Trouble::Stopped => "the job was stopped".into(),
    }
}
