//! The loop over a batch's async tasks: one slot keeps several tasks of its batch in flight.

#![expect(clippy::future_not_send, reason = "a slot polls these on its own thread, and they never leave it")]

use std::{
    cell::Cell,
    collections::VecDeque,
    future::{Future, pending, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use serde_json::value::RawValue;

use super::{
    batch_run::{BatchRun, RawTasks},
    catch, panic_text,
    running_index::RunningIndex,
};
use crate::{
    Job, TaskContext, TaskError, TaskIndex,
    task_runtime::task_runtime,
    wire::{Batch, Malformed},
};

/// Outcomes that may wait for an earlier task, in multiples of [`Job::IN_FLIGHT`]. One slow task
/// leaves the others room to go on, and a slot holds a bounded number of outputs.
const REORDER_ROUNDS: usize = 4;

/// A task that has started and whose outcome is not recorded yet.
struct StartedTask<J: Job> {
    deadline: Option<Instant>,
    outcome: Option<Result<J::Output, TaskError>>,
}

/// Runs the batch's tasks through [`Job::process_async`] on the calling thread and records their
/// outcomes in the order of their indices. Returns the number of recorded outcomes. `travelling`
/// holds the encoded tasks if they travel beside their outputs.
///
/// Futures are polled on the slot's own thread, so that a future that blocks stalls this slot
/// alone, like a task that hangs. The shared runtime drives sockets and timers.
pub(super) fn process_in_flight<J: Job>(
    job: &J,
    batch: &Batch<'_>,
    tasks: Vec<Result<J::Task, TaskError>>,
    travelling: Option<&[&RawValue]>,
    raw: &mut RawTasks<'_, '_>,
    run: &mut BatchRun<'_>,
) -> Result<u32, Malformed> {
    let runtime = match task_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            let trouble = error.into_kind();
            for (index, task) in (batch.first.0..).map(TaskIndex).zip(raw.tasks()?) {
                run.record_failure(index, trouble.clone(), task);
            }
            run.flush();
            return Ok(batch.count);
        }
    };
    let recorded = runtime.block_on(run_tasks(job, batch.first, tasks, travelling, raw, run));
    run.flush();
    recorded
}

async fn run_tasks<J: Job>(
    job: &J,
    first: TaskIndex,
    tasks: Vec<Result<J::Task, TaskError>>,
    travelling: Option<&[&RawValue]>,
    raw: &mut RawTasks<'_, '_>,
    run: &mut BatchRun<'_>,
) -> Result<u32, Malformed> {
    let limit = J::IN_FLIGHT.max(1) as usize;
    let (mut tasks, mut window) = (tasks.into_iter(), VecDeque::<StartedTask<J>>::new());
    let (mut recorded, mut watched) = (0_u32, None);
    let (running, oldest) = (run.running, Cell::new(first));
    let mut active = FuturesUnordered::new();
    'batch: loop {
        while active.len() < limit && window.len() < limit * REORDER_ROUNDS && !run.halt.is_stopped() {
            let index = first.plus(u64::from(recorded) + window.len() as u64);
            let Some(task) = tasks.next() else { break };
            let Ok(cx) = run.new_task_context(index) else { break 'batch };
            let (deadline, mut outcome) = (cx.deadline(), None);
            match task {
                Ok(task) => {
                    active.push(run_task(job, task, index, cx, TaskPoller { running, oldest: &oldest }));
                }
                Err(error) => outcome = Some(Err(error)),
            }
            window.push_back(StartedTask::<J> { deadline, outcome });
        }
        while let Some(outcome) = window.front_mut().and_then(|started| started.outcome.take()) {
            let index = first.plus(recorded.into());
            let task = travelling.and_then(|tasks| tasks.get(recorded as usize).copied());
            let outcome = outcome.and_then(|output| run.record_output(index, &output, task));
            match outcome.map_err(TaskError::into_kind) {
                Ok(()) => {}
                Err(trouble) => run.record_failure(index, trouble, raw.tasks()?[recorded as usize]),
            }
            window.pop_front();
            recorded += 1;
            if run.flush_if_due() {
                watched = None; // the time limit watcher forgets the task when outcomes are emitted
            }
        }
        let Some(front) = window.front() else {
            if tasks.len() == 0 || run.halt.is_stopped() {
                break;
            }
            continue; // tasks that did not decode left room in the window
        };
        oldest.set(first.plus(recorded.into()));
        if watched != Some(oldest.get()) {
            watched = Some(oldest.get());
            if !run.announce_start(oldest.get(), front.deadline) {
                break;
            }
        }
        let result = tokio::select! {
            biased;
            result = active.next() => result,
            () = sleep(run.time_until_flush()) => {
                run.flush();
                watched = None;
                continue;
            }
        };
        let Some((index, outcome)) = result else { break };
        if matches!(&outcome, Err(error) if error.is_stop()) {
            break;
        }
        let place = index.0 - first.0 - u64::from(recorded);
        window[usize::try_from(place).unwrap_or(usize::MAX)].outcome = Some(outcome);
    }
    // Dropping the remaining futures runs user code as well.
    if let Err(panic) = catch(|| drop(active)) {
        tracing::warn!(kind = J::KIND, panic, "an abandoned task panicked when it was dropped");
    }
    Ok(recorded)
}

/// Records the index of the task that is polled, so that a watcher can name a task that blocks the
/// thread.
struct TaskPoller<'a> {
    running: Option<&'a RunningIndex>,
    /// The first task without an outcome; it counts as running while no task is polled.
    oldest: &'a Cell<TaskIndex>,
}

impl TaskPoller<'_> {
    async fn poll_as<F: Future>(&self, index: TaskIndex, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Some(running) = self.running {
                running.set(index);
            }
            let polled = future.as_mut().poll(context);
            if let Some(running) = self.running {
                running.set(self.oldest.get());
            }
            polled
        })
        .await
    }
}

/// Runs one task to its outcome and turns a panic into an error.
async fn run_task<J: Job>(
    job: &J,
    task: J::Task,
    index: TaskIndex,
    cx: TaskContext,
    poller: TaskPoller<'_>,
) -> (TaskIndex, Result<J::Output, TaskError>) {
    let work = async { cx.run_until_stopped(async { job.process_async(task, &cx).await }).await };
    let outcome = poller.poll_as(index, AssertUnwindSafe(work).catch_unwind()).await;
    let outcome = match outcome {
        Ok(result) => result.and_then(|outcome| outcome),
        Err(panic) => Err(TaskError::failed(format_args!("panic: {}", panic_text(&*panic)))),
    };
    (index, outcome)
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => pending().await,
    }
}
