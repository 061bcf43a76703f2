//! Processing: the typed loop over a batch's tasks.

mod outcomes;

use std::{
    fmt, mem,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::value::RawValue;

use super::catch;
use crate::{
    Job, Policy, StopSignal, TaskContext, TaskError, TaskIndex, Trouble,
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
}

impl DoneTasks {
    /// These outputs, of consecutive tasks from index `first` on.
    ///
    /// # Panics
    /// If one of them does not encode as JSON.
    #[must_use]
    pub fn of(first: TaskIndex, outputs: &[impl Serialize]) -> Self {
        let mut json = serde_json::to_vec(outputs).expect("outputs that encode");
        json.pop();
        let count = u32::try_from(outputs.len()).expect("fewer outputs than memory has room for");
        Self { first, count, json }
    }

    /// How many bytes the outputs take, encoded.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.json.len()
    }

    /// Takes along the outputs of the tasks that come next.
    ///
    /// # Errors
    /// The other's, if its tasks are not the next ones, or are too many to be counted together.
    pub fn append(&mut self, next: Self) -> Result<(), Self> {
        let Some(count) = self.count.checked_add(next.count) else { return Err(next) };
        if self.first.plus(self.count.into()) != next.first {
            return Err(next);
        }
        let [_, outputs @ ..] = next.json.as_slice() else { return Err(next) };
        if self.count > 0 {
            self.json.push(b',');
        }
        self.count = count;
        self.json.extend_from_slice(outputs);
        Ok(())
    }

    /// A JSON array of the outputs.
    #[must_use]
    pub fn into_outputs(mut self) -> Box<RawValue> {
        self.json.push(b']');
        let json = String::from_utf8(self.json).expect("serde_json writes UTF-8");
        RawValue::from_string(json).expect("an array of serialised values is JSON")
    }
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

/// Told on the slot's thread, before a task with a time limit begins, of its index and its deadline. If it answers no,
/// the run ends there.
pub type Begins<'a> = dyn Fn(TaskIndex, Instant) -> bool + Sync + 'a;

/// One run of a batch on one slot: gathers outcomes and hands them on in chunks.
pub struct BatchRun<'a> {
    cx: TaskContext,
    timeout: Option<Duration>,
    halt: StopSignal,
    hand_on: &'a mut (dyn FnMut(Chunk) + Send),
    begins: Option<&'a Begins<'a>>,
    hand_on_every: Duration,
    chunk: Chunk,
    chunk_began: Instant,
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
            hand_on_every: HAND_ON_EVERY,
            chunk: Chunk::default(),
            chunk_began: Instant::now(),
        }
    }

    /// The same run, with somebody who watches over time limits.
    #[must_use]
    pub fn watched(self, begins: &'a Begins<'a>) -> Self {
        Self { begins: Some(begins), ..self }
    }

    fn begin(&mut self, index: TaskIndex) -> Result<(), TaskError> {
        // A timeout that the clock cannot express never comes.
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.cx.move_to(index, None);
        self.cx.check()?;
        self.cx.move_to(index, deadline);
        if let (Some(deadline), Some(begins)) = (deadline, self.begins)
            && !begins(index, deadline)
        {
            return Err(TaskError::stopped());
        }
        Ok(())
    }

    fn done(&mut self, index: TaskIndex, output: &impl Serialize) -> Result<(), TaskError> {
        let follows = self.chunk.done.last().is_some_and(|span| span.first.plus(span.count.into()) == index);
        if !follows {
            self.chunk.done.push(DoneTasks { first: index, count: 0, json: Vec::new() });
        }
        let span = self.chunk.done.last_mut().expect("one was pushed if there was none");
        let before = span.json.len();
        span.json.push(if before == 0 { b'[' } else { b',' });
        let written = catch(|| serde_json::to_writer(&mut span.json, output));
        let size = span.json.len() - before - 1;
        let refusal = match written {
            Err(panic) => Some(format!("encoding its output panicked: {panic}")),
            Ok(Err(error)) => Some(format!("its output cannot be encoded: {error}")),
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
        span.count += 1;
        self.chunk.bytes += size + 1;
        Ok(())
    }

    fn failed(&mut self, index: TaskIndex, trouble: Trouble, task: &RawValue) {
        let trouble = trouble.clipped();
        self.chunk.bytes += task.get().len() + trouble.encoded_len();
        self.chunk.failed.push(TaskFailure { index, trouble, task: task.to_owned() });
    }

    /// Hands on a chunk that is large or old.
    fn end(&mut self) {
        if self.chunk.bytes >= RESULTS_MESSAGE_BYTES || self.chunk_began.elapsed() >= self.hand_on_every {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.chunk.busy = self.chunk_began.elapsed();
        if !self.chunk.is_empty() {
            (self.hand_on)(mem::take(&mut self.chunk));
        }
        self.chunk_began = Instant::now(); // the slot may have waited for the broker
    }
}

pub(super) fn process_batch<J: Job>(
    job: &J,
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
    let mut ran = 0;
    for (index, task) in (batch.first.0..).map(TaskIndex).zip(typed) {
        if run.halt.is_stopped() {
            break;
        }
        let outcome = task.and_then(|task| {
            run.begin(index)?;
            let output = catch(|| job.process(task, &run.cx))
                .unwrap_or_else(|panic| Err(TaskError::failed(format_args!("panic: {panic}"))))?;
            run.done(index, &output)
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
    Err(TaskError::reject(format_args!("the task does not decode as a task of kind {}: {why}", J::KIND)))
}

/// The encoded tasks one by one, found when they are first asked for.
struct RawTasks<'b, 'a> {
    batch: &'b Batch<'a>,
    tasks: Option<Vec<&'a RawValue>>,
}

impl<'a> RawTasks<'_, 'a> {
    fn tasks(&mut self) -> Result<&[&'a RawValue], Malformed> {
        if self.tasks.is_none() {
            self.tasks = Some(self.batch.each()?);
        }
        Ok(self.tasks.as_deref().unwrap_or_default())
    }
}
