//! One run of a batch: its outcomes, gathered into chunks.

mod external_outcomes;

use std::{
    fmt, mem,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{PrepareError, StateCell, catch, running_index::RunningIndex};
use crate::{
    FailureKind, Job, Policy, StopSignal, TaskContext, TaskError, TaskIndex, finite,
    wire::{Batch, Malformed, OUTPUT_MAX_BYTES, RESULTS_MESSAGE_BYTES},
};

/// The longest time between two chunks of a long batch.
const EMIT_INTERVAL: Duration = Duration::from_millis(500);

/// The outcomes of a part of a batch, as a slot emits them.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Outputs, in runs of consecutive tasks.
    pub done: Vec<DoneTasks>,
    /// Tasks without an output.
    pub failed: Vec<TaskFailure>,
    /// The time that all of these tasks took together.
    pub busy: Duration,
    bytes: usize,
}

impl Chunk {
    /// Returns the index after the last task of the chunk.
    #[must_use]
    pub fn end(&self) -> Option<TaskIndex> {
        let done = self.done.last().map(|done| done.first.plus(done.count.into()));
        done.max(self.failed.last().map(|failed| failed.index.plus(1)))
    }

    fn is_empty(&self) -> bool {
        self.done.is_empty() && self.failed.is_empty()
    }
}

/// Outputs of consecutive tasks.
#[derive(Debug)]
pub struct DoneTasks {
    /// The first task.
    pub first: TaskIndex,
    /// The number of tasks.
    pub count: u32,
    /// The outputs as a JSON array without its closing bracket.
    json: Vec<u8>,
    /// The tasks in the same form, if they travel with their outputs.
    tasks: Option<Vec<u8>>,
}

impl DoneTasks {
    /// Encodes the outputs of consecutive tasks from index `first` on.
    ///
    /// # Panics
    /// If an output does not encode as JSON, or contains a float that is not finite.
    #[must_use]
    pub fn from_outputs(first: TaskIndex, outputs: &[impl Serialize]) -> Self {
        let mut json = serde_json::to_vec(outputs).expect("outputs that encode");
        finite::check("outputs", outputs, &json).expect("outputs with finite floats");
        json.pop();
        let count = u32::try_from(outputs.len()).expect("fewer outputs than memory has room for");
        Self { first, count, json, tasks: None }
    }

    /// Adds the tasks of the outputs.
    ///
    /// # Panics
    /// If a task does not encode as JSON.
    #[must_use]
    pub fn with_tasks(self, tasks: &[impl Serialize]) -> Self {
        let mut json = serde_json::to_vec(tasks).expect("tasks that encode");
        json.pop();
        Self { tasks: Some(json), ..self }
    }

    /// Returns the size of the encoded outputs in bytes, plus that of the tasks if they travel
    /// along.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const FIELD_BYTES: usize = r#","tasks":]"#.len();
        self.json.len() + self.tasks.as_ref().map_or(0, |tasks| FIELD_BYTES + tasks.len())
    }

    /// Appends the outputs of the tasks that come next.
    ///
    /// # Errors
    /// Returns `next` if its tasks do not follow, if the count would overflow, or if only one of
    /// the two carries the tasks themselves.
    pub fn append(&mut self, next: Self) -> Result<(), Self> {
        let Some(count) = self.count.checked_add(next.count) else { return Err(next) };
        if self.first.plus(self.count.into()) != next.first {
            return Err(next);
        }
        let [_, outputs @ ..] = next.json.as_slice() else { return Err(next) };
        match (&mut self.tasks, next.tasks.as_deref()) {
            (None, None) => {}
            (Some(tasks), Some([_, more @ ..])) => extend_array(tasks, self.count, more),
            _ => return Err(next),
        }
        extend_array(&mut self.json, self.count, outputs);
        self.count = count;
        Ok(())
    }

    /// Returns a JSON array of the outputs.
    #[must_use]
    pub fn into_outputs(self) -> Box<RawValue> {
        close_array(self.json)
    }

    /// Returns the outputs as in [`DoneTasks::into_outputs`], and a JSON array of the tasks if they
    /// travel along.
    #[must_use]
    pub fn into_parts(self) -> (Box<RawValue>, Option<Box<RawValue>>) {
        (close_array(self.json), self.tasks.map(close_array))
    }
}

/// Appends elements to an open JSON array of `count` elements.
fn extend_array(array: &mut Vec<u8>, count: u32, elements: &[u8]) {
    if count > 0 {
        array.push(b',');
    }
    array.extend_from_slice(elements);
}

fn close_array(mut json: Vec<u8>) -> Box<RawValue> {
    json.push(b']');
    let json = String::from_utf8(json).expect("serde_json writes UTF-8");
    RawValue::from_string(json).expect("an array of serialised values is JSON")
}

/// A task without an output in this attempt.
#[derive(Debug)]
pub struct TaskFailure {
    /// The index of the task.
    pub index: TaskIndex,
    /// The kind of failure, never [`FailureKind::Stopped`].
    pub trouble: FailureKind,
    /// The encoded task, to be sent again.
    pub task: Box<RawValue>,
}

/// A callback on the slot's thread before a task with a time limit starts. It gets the task's index
/// and deadline. If it returns false, the run ends there. `None` as the deadline cancels the
/// earlier deadline; the task has not started yet.
pub type TaskStartHook<'a> = dyn Fn(TaskIndex, Option<Instant>) -> bool + Sync + 'a;

/// A callback on the slot's thread before the first task starts. It gets the time for which the run
/// waited for the job's state.
pub type PreparedHook<'a> = dyn Fn(Duration) + Sync + 'a;

/// One run of a batch on one slot: collects outcomes and emits them in chunks.
pub struct BatchRun<'a> {
    cx: TaskContext,
    timeout: Option<Duration>,
    pub(super) halt: StopSignal,
    emit_chunk: &'a mut (dyn FnMut(Chunk) + Send),
    task_start_hook: Option<&'a TaskStartHook<'a>>,
    pub(super) running: Option<&'a RunningIndex>,
    emit_interval: Duration,
    chunk: Chunk,
    chunk_began: Instant,
    prepare_time: Duration,
    prepare_at_once: bool,
    prepared_hook: Option<&'a PreparedHook<'a>>,
    pub(super) unprepared: Option<String>,
}

impl fmt::Debug for BatchRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchRun").field("cx", &self.cx).finish_non_exhaustive()
    }
}

impl<'a> BatchRun<'a> {
    /// Starts a run. `halt` ends it before its next task (the worker shuts down); the running task
    /// does not see it. `emit_chunk` takes each chunk on the slot's thread: when it is large, when
    /// it is half a second old, and at the end of the run.
    pub fn new(
        cx: TaskContext,
        policy: &Policy,
        halt: StopSignal,
        emit_chunk: &'a mut (dyn FnMut(Chunk) + Send),
    ) -> Self {
        Self {
            cx,
            timeout: policy.task_timeout(),
            halt,
            emit_chunk,
            task_start_hook: None,
            running: None,
            emit_interval: EMIT_INTERVAL,
            chunk: Chunk::default(),
            chunk_began: Instant::now(),
            prepare_time: Duration::ZERO,
            prepare_at_once: false,
            prepared_hook: None,
            unprepared: None,
        }
    }

    /// Returns the time for which the run waited for the job's state before the first task. It
    /// counts for no task.
    #[must_use]
    pub fn prepare_time(&self) -> Duration {
        self.prepare_time
    }

    /// Disables the pause after a failure to open the job's state.
    #[must_use]
    pub(crate) fn with_immediate_prepare(self) -> Self {
        Self { prepare_at_once: true, ..self }
    }

    /// Opens the job's state for the tasks, or returns the failure. `None` if the run must end.
    pub(super) fn prepare<J: Job>(&mut self, job: &J, state: &StateCell) -> Option<Result<(), FailureKind>> {
        let began = Instant::now();
        let opened = match state.open(|| job.prepare(), self.prepare_at_once) {
            Ok(state) => Ok(state),
            Err(PrepareError::Failed(trouble)) => Err(trouble),
            Err(PrepareError::Paused(reason)) => {
                self.unprepared = Some(reason);
                return None;
            }
        };
        self.prepare_time = began.elapsed();
        if let Some(prepared_hook) = self.prepared_hook {
            prepared_hook(self.prepare_time);
        }
        self.chunk_began = Instant::now();
        Some(opened.map(|state| self.cx.set_state(state)))
    }

    /// Adds a callback for the moment when the job's state is open, or failed to open.
    #[must_use]
    pub fn on_prepared(self, hook: &'a PreparedHook<'a>) -> Self {
        Self { prepared_hook: Some(hook), ..self }
    }

    /// Adds a callback for each start of a task with a time limit.
    #[must_use]
    pub fn on_task_start(self, hook: &'a TaskStartHook<'a>) -> Self {
        Self { task_start_hook: Some(hook), ..self }
    }

    /// Records the running task in `running`, and no task while outcomes are emitted.
    #[must_use]
    pub fn with_running_index(self, running: &'a RunningIndex) -> Self {
        Self { running: Some(running), ..self }
    }

    /// Moves the run's context to the task at `index` and announces its start.
    pub(super) fn start_task(&mut self, index: TaskIndex) -> Result<(), TaskError> {
        // A timeout that the clock cannot express never expires.
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.cx.move_to(index, None);
        self.cx.check()?;
        self.cx.move_to(index, deadline);
        if !self.announce_start(index, deadline) {
            return Err(TaskError::stopped());
        }
        Ok(())
    }

    /// Returns the context of a task that starts now beside others, with a deadline of its own.
    pub(super) fn new_task_context(&self, index: TaskIndex) -> Result<TaskContext, TaskError> {
        let mut cx = self.cx.clone();
        cx.move_to(index, None);
        cx.check()?;
        cx.move_to(index, self.timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
        Ok(cx)
    }

    /// Tells the watchers of the run which task runs from now on. Returns false if the run must
    /// end.
    pub(super) fn announce_start(&self, index: TaskIndex, deadline: Option<Instant>) -> bool {
        if let (Some(deadline), Some(hook)) = (deadline, self.task_start_hook)
            && !hook(index, Some(deadline))
        {
            return false;
        }
        // After the new deadline is set, so that the watcher never applies the old one to this
        // task.
        if let Some(running) = self.running {
            running.set(index);
        }
        true
    }

    /// Returns for how long the outcomes so far may still wait, or `None` if there are none.
    pub(super) fn time_until_flush(&self) -> Option<Duration> {
        (!self.chunk.is_empty()).then(|| EMIT_INTERVAL.saturating_sub(self.chunk_began.elapsed()))
    }

    /// Records an output, and its task if that is to travel along.
    pub(super) fn record_output(
        &mut self,
        index: TaskIndex,
        output: &impl Serialize,
        task: Option<&RawValue>,
    ) -> Result<(), TaskError> {
        let follows = self.chunk.done.last().is_some_and(|span| span.first.plus(span.count.into()) == index);
        if !follows {
            let tasks = task.map(|_| Vec::new());
            self.chunk.done.push(DoneTasks { first: index, count: 0, json: Vec::new(), tasks });
        }
        let span = self.chunk.done.last_mut().expect("one was pushed if there was none");
        let before = span.json.len();
        span.json.push(if before == 0 { b'[' } else { b',' });
        let written = catch(|| -> Result<(), String> {
            let encoded = serde_json::to_writer(&mut span.json, output);
            encoded.map_err(|error| format!("its output cannot be encoded: {error}"))?;
            let json = &span.json[before + 1..];
            finite::check("output", output, json).map_err(|error| error.to_string())
        });
        let size = span.json.len() - before - 1;
        let refusal = match written {
            Err(panic) => Some(format!("encoding its output panicked: {panic}")),
            Ok(Err(why)) => Some(why),
            Ok(Ok(())) if size > OUTPUT_MAX_BYTES => {
                Some(format!("its output takes {size} bytes, more than {OUTPUT_MAX_BYTES}"))
            }
            Ok(Ok(())) => None,
        };
        if let Some(why) = refusal {
            span.json.truncate(before);
            if span.count == 0 {
                self.chunk.done.pop();
            }
            return Err(TaskError::reject(why));
        }
        if let (Some(tasks), Some(task)) = (&mut span.tasks, task) {
            tasks.push(if span.count == 0 { b'[' } else { b',' });
            tasks.extend_from_slice(task.get().as_bytes());
            self.chunk.bytes += task.get().len() + 1;
        }
        span.count += 1;
        self.chunk.bytes += size + 1;
        Ok(())
    }

    pub(super) fn record_failure(&mut self, index: TaskIndex, trouble: FailureKind, task: &RawValue) {
        let trouble = trouble.clip();
        self.chunk.bytes += task.get().len() + trouble.encoded_len();
        self.chunk.failed.push(TaskFailure { index, trouble, task: task.to_owned() });
    }

    /// Emits the chunk if it is large or old. Returns true if it was due.
    pub(super) fn flush_if_due(&mut self) -> bool {
        let is_old = self.chunk_began.elapsed() >= self.emit_interval;
        let is_due = self.chunk.bytes >= RESULTS_MESSAGE_BYTES || is_old;
        if is_due {
            self.flush();
        }
        is_due
    }

    pub(super) fn flush(&mut self) {
        if let Some(running) = self.running {
            running.clear(); // emitting may wait for the broker
        }
        self.chunk.busy = self.chunk_began.elapsed();
        if !self.chunk.is_empty() {
            (self.emit_chunk)(mem::take(&mut self.chunk));
        }
        self.chunk_began = Instant::now(); // the slot may have waited for the broker
    }
}

/// The encoded tasks of a batch one by one, located at the first access.
pub(super) struct RawTasks<'b, 'a> {
    batch: &'b Batch<'a>,
    tasks: Option<Vec<&'a RawValue>>,
}

impl<'b, 'a> RawTasks<'b, 'a> {
    pub(super) fn new(batch: &'b Batch<'a>) -> Self {
        Self { batch, tasks: None }
    }

    pub(super) fn tasks(&mut self) -> Result<&[&'a RawValue], Malformed> {
        if self.tasks.is_none() {
            self.tasks = Some(self.batch.encoded_tasks()?);
        }
        Ok(self.tasks.as_deref().unwrap_or_default())
    }
}
