//! Processing: the typed loop over a batch's tasks.

mod external_outcomes;

use std::{
    fmt, mem,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{NoState, StateCell, catch, in_flight::process_in_flight, running_index::RunningIndex};
use crate::{
    Job, Keep, Policy, StopSignal, TaskContext, TaskError, TaskIndex, Trouble, finite,
    wire::{Batch, Malformed, OUTPUT_MAX_BYTES, RESULTS_MESSAGE_BYTES},
};

/// A long batch hands on what it has at least this often.
const HAND_ON_EVERY: Duration = Duration::from_millis(500);

/// Outcomes of consecutive stretches of a batch, as they leave a slot.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Outputs.
    pub done: Vec<DoneTasks>,
    /// Tasks that gave none.
    pub failed: Vec<TaskFailure>,
    /// How long they took, together.
    pub busy: Duration,
    bytes: usize,
}

impl Chunk {
    /// The index after the last task that it knows of.
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
    /// How many.
    pub count: u32,
    json: Vec<u8>,
    /// The tasks themselves, likewise, if they travel with their outputs.
    tasks: Option<Vec<u8>>,
}

impl DoneTasks {
    /// These outputs, of consecutive tasks from index `first` on.
    ///
    /// # Panics
    /// If one of them does not encode as JSON, or contains a float that is not finite.
    #[must_use]
    pub fn of(first: TaskIndex, outputs: &[impl Serialize]) -> Self {
        let mut json = serde_json::to_vec(outputs).expect("outputs that encode");
        finite::check("outputs", outputs, &json).expect("outputs with finite floats");
        json.pop();
        let count = u32::try_from(outputs.len()).expect("fewer outputs than memory has room for");
        Self { first, count, json, tasks: None }
    }

    /// Adds the tasks that the outputs came of.
    ///
    /// # Panics
    /// If one of them does not encode as JSON.
    #[must_use]
    pub fn with_tasks(self, tasks: &[impl Serialize]) -> Self {
        let mut json = serde_json::to_vec(tasks).expect("tasks that encode");
        json.pop();
        Self { tasks: Some(json), ..self }
    }

    /// Size of the encoded outputs in bytes, with that of the tasks if they travel along.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const FIELD_BYTES: usize = r#","tasks":]"#.len();
        self.json.len() + self.tasks.as_ref().map_or(0, |tasks| FIELD_BYTES + tasks.len())
    }

    /// Takes along the outputs of the tasks that come next.
    ///
    /// # Errors
    /// The other's, if its tasks are not the next ones, or are too many to be counted together, or
    /// if the tasks themselves travel in one of the two only.
    pub fn append(&mut self, next: Self) -> Result<(), Self> {
        let Some(count) = self.count.checked_add(next.count) else { return Err(next) };
        if self.first.plus(self.count.into()) != next.first {
            return Err(next);
        }
        let [_, outputs @ ..] = next.json.as_slice() else { return Err(next) };
        match (&mut self.tasks, next.tasks.as_deref()) {
            (None, None) => {}
            (Some(tasks), Some([_, more @ ..])) => lengthen(tasks, self.count, more),
            _ => return Err(next),
        }
        lengthen(&mut self.json, self.count, outputs);
        self.count = count;
        Ok(())
    }

    /// A JSON array of the outputs.
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

/// Appends further elements to a JSON array that is open and has `count` elements.
fn lengthen(array: &mut Vec<u8>, count: u32, elements: &[u8]) {
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

/// A task that gave no output this time.
#[derive(Debug)]
pub struct TaskFailure {
    /// Which.
    pub index: TaskIndex,
    /// Why. Never [`Trouble::Stopped`].
    pub trouble: Trouble,
    /// The task, encoded, so that it can be sent again.
    pub task: Box<RawValue>,
}

/// A callback on the slot's thread, before a task with a time limit begins, with its index and its
/// deadline. If it returns false, the run ends there. `None` as the deadline means that the earlier
/// one counts no longer and that the task has not begun.
pub type Begins<'a> = dyn Fn(TaskIndex, Option<Instant>) -> bool + Sync + 'a;

/// Told on the slot's thread, before the first task begins, for how long the run waited for the
/// job's state.
pub type IsPrepared<'a> = dyn Fn(Duration) + Sync + 'a;

/// One run of a batch on one slot: gathers outcomes and hands them on in chunks.
pub struct BatchRun<'a> {
    cx: TaskContext,
    timeout: Option<Duration>,
    pub(super) halt: StopSignal,
    hand_on: &'a mut (dyn FnMut(Chunk) + Send),
    begins: Option<&'a Begins<'a>>,
    pub(super) running: Option<&'a RunningIndex>,
    hand_on_every: Duration,
    chunk: Chunk,
    chunk_began: Instant,
    prepare_time: Duration,
    prepare_at_once: bool,
    is_prepared: Option<&'a IsPrepared<'a>>,
    pub(super) unprepared: Option<String>,
}

impl fmt::Debug for BatchRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchRun").field("cx", &self.cx).finish_non_exhaustive()
    }
}

impl<'a> BatchRun<'a> {
    /// A run that starts now. `halt` ends it before its next task (the worker is leaving); the running task does not
    /// see it. `hand_on` takes each chunk on the slot's thread: when it is large, when it is half a second old, and
    /// at the end.
    pub fn new(
        cx: TaskContext,
        policy: &Policy,
        halt: StopSignal,
        hand_on: &'a mut (dyn FnMut(Chunk) + Send),
    ) -> Self {
        Self {
            cx,
            timeout: policy.task_timeout(),
            halt,
            hand_on,
            begins: None,
            running: None,
            hand_on_every: HAND_ON_EVERY,
            chunk: Chunk::default(),
            chunk_began: Instant::now(),
            prepare_time: Duration::ZERO,
            prepare_at_once: false,
            is_prepared: None,
            unprepared: None,
        }
    }

    /// Returns the time for which the run waited for the job's state before the first task,
    /// which belongs to no task.
    #[must_use]
    pub fn prepare_time(&self) -> Duration {
        self.prepare_time
    }

    /// The same run, without a pause after a failure to open the job's state.
    #[must_use]
    pub(crate) fn preparing_at_once(self) -> Self {
        Self { prepare_at_once: true, ..self }
    }

    /// Opens the job's state for the tasks, or returns why there is none. None if the run must end.
    fn prepare<J: Job>(&mut self, job: &J, state: &StateCell) -> Option<Result<(), Trouble>> {
        let began = Instant::now();
        let opened = match state.open(|| job.prepare(), self.prepare_at_once) {
            Ok(state) => Ok(state),
            Err(NoState::Failed(trouble)) => Err(trouble),
            Err(NoState::Paused(reason)) => {
                self.unprepared = Some(reason);
                return None;
            }
        };
        self.prepare_time = began.elapsed();
        if let Some(is_prepared) = self.is_prepared {
            is_prepared(self.prepare_time);
        }
        self.chunk_began = Instant::now();
        Some(opened.map(|state| self.cx.set_state(state)))
    }

    /// The same run, which tells when the job's state is there, or failed to open.
    #[must_use]
    pub fn telling_prepared(self, is_prepared: &'a IsPrepared<'a>) -> Self {
        Self { is_prepared: Some(is_prepared), ..self }
    }

    /// The same run, with somebody who watches over time limits.
    #[must_use]
    pub fn watched(self, begins: &'a Begins<'a>) -> Self {
        Self { begins: Some(begins), ..self }
    }

    /// The same run, which notes in `running` which task runs, and none while outcomes are handed
    /// on.
    #[must_use]
    pub fn noting(self, running: &'a RunningIndex) -> Self {
        Self { running: Some(running), ..self }
    }

    fn begin(&mut self, index: TaskIndex) -> Result<(), TaskError> {
        // A timeout that the clock cannot express never comes.
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.cx.move_to(index, None);
        self.cx.check()?;
        self.cx.move_to(index, deadline);
        if !self.watch(index, deadline) {
            return Err(TaskError::stopped());
        }
        Ok(())
    }

    /// The context of a task that begins now beside others, with a deadline of its own.
    pub(super) fn context(&self, index: TaskIndex) -> Result<TaskContext, TaskError> {
        let mut cx = self.cx.clone();
        cx.move_to(index, None);
        cx.check()?;
        cx.move_to(index, self.timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
        Ok(cx)
    }

    /// Tells whatever watches over the run which task runs from now on. False if the run ends
    /// there.
    pub(super) fn watch(&self, index: TaskIndex, deadline: Option<Instant>) -> bool {
        if let (Some(deadline), Some(begins)) = (deadline, self.begins)
            && !begins(index, Some(deadline))
        {
            return false;
        }
        // Only now, so that the watcher never takes this task for one whose deadline has passed.
        if let Some(running) = self.running {
            running.set(index);
        }
        true
    }

    /// Returns for how long the outcomes so far may still wait, or nothing if there are none.
    pub(super) fn until_flush(&self) -> Option<Duration> {
        (!self.chunk.is_empty()).then(|| HAND_ON_EVERY.saturating_sub(self.chunk_began.elapsed()))
    }

    /// Takes in an output, and the task that it came of if that is to travel along.
    pub(super) fn done(
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

    pub(super) fn failed(&mut self, index: TaskIndex, trouble: Trouble, task: &RawValue) {
        let trouble = trouble.clipped();
        self.chunk.bytes += task.get().len() + trouble.encoded_len();
        self.chunk.failed.push(TaskFailure { index, trouble, task: task.to_owned() });
    }

    /// Hands on a chunk that is large or old. Returns whether it did.
    pub(super) fn end(&mut self) -> bool {
        let is_old = self.chunk_began.elapsed() >= self.hand_on_every;
        let is_due = self.chunk.bytes >= RESULTS_MESSAGE_BYTES || is_old;
        if is_due {
            self.flush();
        }
        is_due
    }

    pub(super) fn flush(&mut self) {
        if let Some(running) = self.running {
            running.clear(); // handing on may wait for the broker
        }
        self.chunk.busy = self.chunk_began.elapsed();
        if !self.chunk.is_empty() {
            (self.hand_on)(mem::take(&mut self.chunk));
        }
        self.chunk_began = Instant::now(); // the slot may have waited for the broker
    }
}

pub(super) fn sends_tasks<J: Job>(policy: &Policy) -> bool {
    J::WITH_TASKS || policy.keep.unwrap_or(J::KEEP) == Keep::Tasks
}

pub(super) fn process_batch<J: Job>(
    job: &J,
    state: &StateCell,
    batch: &Batch<'_>,
    run: &mut BatchRun<'_>,
) -> Result<u32, Malformed> {
    let mut raw = RawTasks { batch, tasks: None };
    // The usual case decodes the whole array at once; one bad task costs the batch a second look, not its neighbours.
    let decoded = catch(|| serde_json::from_str::<Vec<J::Task>>(batch.tasks.get()));
    let typed: Vec<Result<J::Task, TaskError>> = match decoded {
        Ok(Ok(tasks)) => tasks.into_iter().map(Ok).collect(),
        Ok(Err(_)) | Err(_) => raw.tasks()?.iter().map(|task| decode_task::<J>(task)).collect(),
    };
    if typed.len() != batch.count as usize {
        return Err(batch.wrong_count(typed.len()));
    }
    let travelling = if sends_tasks::<J>(&batch.policy) { Some(raw.tasks()?.to_vec()) } else { None };
    let Some(prepared) = run.prepare(job, state) else { return Ok(0) };
    if J::IN_FLIGHT > 0 {
        let typed = match prepared {
            Ok(()) => typed,
            Err(trouble) => {
                let failed = || Err(TaskError::from_trouble(trouble.clone()));
                typed.into_iter().map(|task| task.and_then(|_| failed())).collect()
            }
        };
        return process_in_flight(job, batch, typed, travelling.as_deref(), &mut raw, run);
    }
    let mut ran = 0;
    for (index, task) in (batch.first.0..).map(TaskIndex).zip(typed) {
        if run.halt.is_stopped() {
            break;
        }
        let outcome = task.and_then(|task| {
            run.begin(index)?;
            prepared.clone().map_err(TaskError::from_trouble)?;
            let output = catch(|| job.process(task, &run.cx))
                .unwrap_or_else(|panic| Err(TaskError::failed(format_args!("panic: {panic}"))))?;
            let task = travelling.as_ref().and_then(|tasks| tasks.get(ran as usize).copied());
            run.done(index, &output, task)
        });
        match outcome.map_err(TaskError::into_trouble) {
            Ok(()) => {}
            Err(Trouble::Stopped) => break,
            Err(trouble) => run.failed(index, trouble, raw.tasks()?[ran as usize]),
        }
        ran += 1;
        run.end();
    }
    run.flush();
    Ok(ran)
}

fn decode_task<J: Job>(task: &RawValue) -> Result<J::Task, TaskError> {
    let why = match catch(|| serde_json::from_str(task.get())) {
        Ok(Ok(task)) => return Ok(task),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {panic}"),
    };
    Err(TaskError::undecodable(format_args!("the task does not decode as a task of kind {}: {why}", J::KIND)))
}

/// The encoded tasks one by one, found when they are first asked for.
pub(super) struct RawTasks<'b, 'a> {
    batch: &'b Batch<'a>,
    tasks: Option<Vec<&'a RawValue>>,
}

impl<'a> RawTasks<'_, 'a> {
    pub(super) fn tasks(&mut self) -> Result<&[&'a RawValue], Malformed> {
        if self.tasks.is_none() {
            self.tasks = Some(self.batch.each()?);
        }
        Ok(self.tasks.as_deref().unwrap_or_default())
    }
}
