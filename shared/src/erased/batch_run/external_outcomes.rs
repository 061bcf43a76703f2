//! Runs whose tasks are processed elsewhere: outcomes come from outside the typed loop.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::{BatchRun, DoneTasks};
use crate::{FailureKind, StopSignal, TaskContext, TaskIndex, wire::OUTPUT_MAX_BYTES};

impl BatchRun<'_> {
    /// Sets the longest time between two chunks while tasks end. Zero emits a chunk after each
    /// task.
    #[must_use]
    pub fn with_emit_interval(self, interval: Duration) -> Self {
        Self { emit_interval: interval, ..self }
    }

    /// Returns the context of the task that started last, or of the first task.
    #[must_use]
    pub fn task_context(&self) -> &TaskContext {
        &self.cx
    }

    /// Returns the signal that ends the run before its next task.
    #[must_use]
    pub fn halt_signal(&self) -> &StopSignal {
        &self.halt
    }

    /// Records that the task at `index` is next and that its time limit does not run yet: its state
    /// is opened elsewhere first. Cancels the deadline of the earlier task.
    ///
    /// # Errors
    /// [`FailureKind::Stopped`] if the run must end before this task.
    pub fn await_prepared(&mut self, index: TaskIndex) -> Result<(), FailureKind> {
        let may_continue =
            self.timeout.is_none() || self.task_start_hook.is_none_or(|hook| hook(index, None));
        if !may_continue {
            return Err(FailureKind::Stopped);
        }
        if let Some(running) = self.running {
            running.set(index);
        }
        Ok(())
    }

    /// Returns the reason why runnable tasks were not run: `prepare` failed less than a second ago
    /// and is not called again until then. This does not count as an attempt of the tasks.
    #[must_use]
    pub fn unprepared_reason(&self) -> Option<&str> {
        self.unprepared.as_deref()
    }

    /// Records the reason why tasks were not run elsewhere. See [`BatchRun::unprepared_reason`].
    pub fn set_unprepared(&mut self, reason: String) {
        self.unprepared = Some(reason);
    }

    /// Adds to [`BatchRun::prepare_time`] the time for which the job's state was opened elsewhere.
    pub fn add_prepare_time(&mut self, time: Duration) {
        self.prepare_time = self.prepare_time.saturating_add(time);
        if self.chunk.is_empty() {
            self.chunk_began = Instant::now();
        }
    }

    /// Starts a task that is processed elsewhere. Returns its deadline if the job has a time limit.
    ///
    /// # Errors
    /// [`FailureKind::Stopped`] if the run must end before this task.
    pub fn begin_task(&mut self, index: TaskIndex) -> Result<Option<Instant>, FailureKind> {
        self.start_task(index).map_err(crate::TaskError::into_kind)?;
        Ok(self.cx.deadline())
    }

    /// Records the outcome of a task that was processed elsewhere, and emits the chunk if it is
    /// due. Outcomes must come in the order of their tasks. An output over [`OUTPUT_MAX_BYTES`]
    /// becomes a rejection. [`FailureKind::Stopped`] is no outcome and is ignored. With
    /// `sends_task` the task travels beside its output.
    pub fn record_outcome(
        &mut self,
        index: TaskIndex,
        outcome: Result<&RawValue, FailureKind>,
        task: &RawValue,
        sends_task: bool,
    ) {
        match outcome {
            Ok(output) if output.get().len() > OUTPUT_MAX_BYTES => {
                let size = output.get().len();
                let why = format!("its output takes {size} bytes, more than {OUTPUT_MAX_BYTES}");
                self.record_failure(index, FailureKind::Rejected(why), task);
            }
            Ok(output) => self.record_encoded(index, output, sends_task.then_some(task)),
            Err(FailureKind::Stopped) => return,
            Err(trouble) => self.record_failure(index, trouble, task),
        }
        self.flush_if_due();
    }

    /// Emits all remaining outcomes. Callers call it at the end of the run.
    pub fn finish(&mut self) {
        self.flush();
    }

    fn record_encoded(&mut self, index: TaskIndex, output: &RawValue, task: Option<&RawValue>) {
        let array = |value: &RawValue| [b"[", value.get().as_bytes()].concat();
        let one = DoneTasks { first: index, count: 1, json: array(output), tasks: task.map(array) };
        self.chunk.bytes += one.bytes();
        let apart = match self.chunk.done.last_mut() {
            Some(last) => last.append(one).err(),
            None => Some(one),
        };
        self.chunk.done.extend(apart);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Chunk, JobId, Policy, RunningIndex};

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.into()).unwrap()
    }

    fn run(policy: &Policy, act: impl FnOnce(&mut BatchRun<'_>)) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut emit_chunk = |chunk| chunks.push(chunk);
        let cx = TaskContext::new(JobId::generate(), TaskIndex(5), 0, StopSignal::new());
        let mut run = BatchRun::new(cx, policy, StopSignal::new(), &mut emit_chunk);
        act(&mut run);
        drop(run);
        chunks
    }

    #[test]
    fn external_outcomes_form_one_chunk() {
        let (task, huge) = (raw("7"), raw(&format!("\"{}\"", "x".repeat(OUTPUT_MAX_BYTES))));
        let chunks = run(&Policy::default(), |run| {
            run.record_outcome(TaskIndex(5), Ok(&raw("1")), &task, false);
            run.record_outcome(TaskIndex(6), Ok(&raw(r#"{"a":2}"#)), &task, false);
            run.record_outcome(TaskIndex(7), Err(FailureKind::TimedOut), &task, false);
            run.record_outcome(TaskIndex(8), Ok(&huge), &task, false);
            run.record_outcome(TaskIndex(9), Ok(&raw("3")), &task, false);
            run.record_outcome(TaskIndex(10), Err(FailureKind::Stopped), &task, false);
            run.finish();
        });
        let [chunk] = <[Chunk; 1]>::try_from(chunks).unwrap();
        assert_eq!(chunk.end(), Some(TaskIndex(10)));
        let failed: Vec<_> = chunk.failed.iter().map(|failure| failure.index.0).collect();
        assert_eq!(failed, [7, 8]);
        assert!(
            matches!(&chunk.failed[1].trouble, FailureKind::Rejected(why) if why.contains("1048578 bytes"))
        );
        let done: Vec<_> = chunk
            .done
            .into_iter()
            .map(|done| (done.first.0, done.count, done.into_outputs().get().to_owned()))
            .collect();
        assert_eq!(done, [(5, 2, r#"[1,{"a":2}]"#.to_owned()), (9, 1, "[3]".to_owned())]);
    }

    #[test]
    fn await_prepared_cancels_the_deadline() {
        let policy = Policy { task_timeout_ms: Some(1_000), ..Policy::default() };
        let (starts, running) = (Mutex::new(Vec::new()), RunningIndex::default());
        let hook = |index: TaskIndex, deadline: Option<Instant>| {
            let mut starts = starts.lock().unwrap();
            starts.push((index.0, deadline.is_some()));
            starts.len() < 3
        };
        let mut emit_chunk = |_| {};
        let cx = TaskContext::new(JobId::generate(), TaskIndex(5), 0, StopSignal::new());
        let run = BatchRun::new(cx, &policy, StopSignal::new(), &mut emit_chunk);
        let mut run = run.on_task_start(&hook).with_running_index(&running);
        assert!(run.begin_task(TaskIndex(5)).unwrap().is_some());
        run.await_prepared(TaskIndex(6)).unwrap();
        assert_eq!(running.get(), Some(TaskIndex(6)));
        run.add_prepare_time(Duration::from_secs(2));
        run.add_prepare_time(Duration::from_secs(1));
        assert_eq!(run.prepare_time(), Duration::from_secs(3));
        assert_eq!(run.await_prepared(TaskIndex(6)), Err(FailureKind::Stopped), "the batch was revoked");
        assert_eq!(*starts.lock().unwrap(), [(5, true), (6, false), (6, false)]);
    }

    #[test]
    fn zero_interval_emits_each_outcome() {
        let mut chunks = 0;
        let mut emit_chunk = |_| chunks += 1;
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        let run = BatchRun::new(cx, &Policy::default(), StopSignal::new(), &mut emit_chunk);
        let mut run = run.with_emit_interval(Duration::ZERO);
        for index in 0..3 {
            run.record_outcome(TaskIndex(index), Ok(&raw("1")), &raw("1"), false);
        }
        run.finish();
        assert_eq!(chunks, 3);
    }

    #[test]
    fn each_task_has_its_own_deadline() {
        let policy = Policy { task_timeout_ms: Some(60_000), ..Policy::default() };
        run(&policy, |run| {
            let first = run.begin_task(TaskIndex(5)).unwrap();
            assert!(first.is_some() && first <= run.begin_task(TaskIndex(6)).unwrap());
            assert_eq!(run.task_context().index(), TaskIndex(6));
        });
    }
}
