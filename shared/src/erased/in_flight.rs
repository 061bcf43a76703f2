//! Processing of async tasks: one slot keeps several tasks of its batch in flight.

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
    catch, panic_text,
    process::{BatchRun, RawTasks},
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

/// A task that was begun and whose outcome was not recorded yet.
struct Begun<J: Job> {
    deadline: Option<Instant>,
    outcome: Option<Result<J::Output, TaskError>>,
}

/// Runs the batch's tasks through [`Job::process_async`] on the calling thread; records outcomes in
/// the order of their indices. Returns how many were recorded. `travelling` are the encoded tasks,
/// if they travel beside their outputs.
///
/// Futures are polled on the slot's own thread, so that one that blocks holds up this slot alone,
/// as a task that hangs does. The shared runtime drives sockets and timers.
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
            let trouble = error.into_trouble();
            for (index, task) in (batch.first.0..).map(TaskIndex).zip(raw.tasks()?) {
                run.failed(index, trouble.clone(), task);
            }
            run.flush();
            return Ok(batch.count);
        }
    };
    let recorded = runtime.block_on(fly_all(job, batch.first, tasks, travelling, raw, run));
    run.flush();
    recorded
}

async fn fly_all<J: Job>(
    job: &J,
    first: TaskIndex,
    tasks: Vec<Result<J::Task, TaskError>>,
    travelling: Option<&[&RawValue]>,
    raw: &mut RawTasks<'_, '_>,
    run: &mut BatchRun<'_>,
) -> Result<u32, Malformed> {
    let limit = J::IN_FLIGHT.max(1) as usize;
    let (mut tasks, mut window) = (tasks.into_iter(), VecDeque::<Begun<J>>::new());
    let (mut recorded, mut watched) = (0_u32, None);
    let (running, oldest) = (run.running, Cell::new(first));
    let mut flights = FuturesUnordered::new();
    'batch: loop {
        while flights.len() < limit && window.len() < limit * REORDER_ROUNDS && !run.halt.is_stopped() {
            let index = first.plus(u64::from(recorded) + window.len() as u64);
            let Some(task) = tasks.next() else { break };
            let Ok(cx) = run.context(index) else { break 'batch };
            let (deadline, mut outcome) = (cx.deadline(), None);
            match task {
                Ok(task) => flights.push(fly(job, task, index, cx, Poller { running, oldest: &oldest })),
                Err(error) => outcome = Some(Err(error)),
            }
            window.push_back(Begun::<J> { deadline, outcome });
        }
        while let Some(outcome) = window.front_mut().and_then(|begun| begun.outcome.take()) {
            let index = first.plus(recorded.into());
            let task = travelling.and_then(|tasks| tasks.get(recorded as usize).copied());
            let outcome = outcome.and_then(|output| run.done(index, &output, task));
            match outcome.map_err(TaskError::into_trouble) {
                Ok(()) => {}
                Err(trouble) => run.failed(index, trouble, raw.tasks()?[recorded as usize]),
            }
            window.pop_front();
            recorded += 1;
            if run.end() {
                watched = None; // whatever watches over time limits forgets the task when outcomes are handed on
            }
        }
        let Some(front) = window.front() else {
            if tasks.len() == 0 || run.halt.is_stopped() {
                break;
            }
            continue; // tasks that did not decode left room
        };
        oldest.set(first.plus(recorded.into()));
        if watched != Some(oldest.get()) {
            watched = Some(oldest.get());
            if !run.watch(oldest.get(), front.deadline) {
                break;
            }
        }
        let ended = tokio::select! {
            biased;
            ended = flights.next() => ended,
            () = sleep(run.until_flush()) => {
                run.flush();
                watched = None;
                continue;
            }
        };
        let Some((index, outcome)) = ended else { break };
        if matches!(&outcome, Err(error) if error.is_stop()) {
            break;
        }
        let place = index.0 - first.0 - u64::from(recorded);
        window[usize::try_from(place).unwrap_or(usize::MAX)].outcome = Some(outcome);
    }
    // The futures of the others are user code as well.
    if let Err(panic) = catch(|| drop(flights)) {
        tracing::warn!(kind = J::KIND, panic, "a task that was given up panicked when it was dropped");
    }
    Ok(recorded)
}

/// Notes which task is polled, so that one that blocks the thread is known by its index.
struct Poller<'a> {
    running: Option<&'a RunningIndex>,
    /// The first task without an outcome, which counts as running while none is polled.
    oldest: &'a Cell<TaskIndex>,
}

impl Poller<'_> {
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

/// Runs one task to its outcome; a panic becomes an error.
async fn fly<J: Job>(
    job: &J,
    task: J::Task,
    index: TaskIndex,
    cx: TaskContext,
    poller: Poller<'_>,
) -> (TaskIndex, Result<J::Output, TaskError>) {
    let work = async { cx.until_ended(async { job.process_async(task, &cx).await }).await };
    let outcome = poller.poll_as(index, AssertUnwindSafe(work).catch_unwind()).await;
    let outcome = match outcome {
        Ok(ended) => ended.and_then(|outcome| outcome),
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
