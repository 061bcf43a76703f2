//! Tools for tests: runs of a job without a broker, with random batches and orders, and transports
//! that inject faults or repeat every message.

mod decorator;
mod faulty;
mod repeating;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    Account, AnyFold, AnyJob, BatchLimit, BatchRun, Chunk, CollectError, DEFAULT_MAX_ATTEMPTS, FailureKind,
    Job, JobError, JobId, Kind, Outcome, Policy, Round, SplitDigest, SplitStep, StopSignal, TaskContext,
    TaskIndex, erased,
    wire::{BATCH_MAX_BYTES, Batch, OutputRun, PackedTasks},
};

pub use decorator::TransportDecorator;
pub use faulty::{FaultCounts, FaultRates, Faults, FaultyTransport};
pub use repeating::RepeatingTransport;

/// The number of times that every batch is processed and delivered. A correct answer does not
/// depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repeat(pub u32);

/// Options of a local run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalRun {
    /// The number of times that every batch is processed and delivered. Defaults to 1.
    pub repeat: u32,
    /// The most tasks of a batch; sizes are random from 1 on. Defaults to 16.
    pub batch: u32,
    /// The seed of the batch sizes and of the order of deliveries. Defaults to 0.
    pub seed: u64,
}

impl Default for LocalRun {
    fn default() -> Self {
        Self { repeat: 1, batch: 16, seed: 0 }
    }
}

impl From<Repeat> for LocalRun {
    fn from(Repeat(repeat): Repeat) -> Self {
        Self { repeat, ..Self::default() }
    }
}

/// The result of a local run, with the names of all tasks that failed.
pub type LocalOutcome<R> = Outcome<R>;

/// Runs a whole job in this thread: splits it into batches of random sizes, processes and delivers
/// each as often as asked in random order, retries failed tasks, and folds new outputs, as a sink
/// does.
///
/// The job travels as it does between processes: `process` and `collect` see what its spec decodes
/// to, and what tasks and outputs decode to. The report is saved and loaded again, as by a sink
/// that restarts, after the deliveries 1, 2, 4, 8 and so on, and at the end.
///
/// # Errors
/// If the job refuses its parameters, cannot be split, panics in `collect` or `fold_in_order`, or
/// has a report that cannot be saved and loaded.
pub fn run_local<J: Job>(job: &J, how: impl Into<LocalRun>) -> Result<LocalOutcome<J::Report>, JobError> {
    let how = how.into();
    let spec = erased::encode_spec(job)?;
    let travelled = erased::open::<J>(&spec)?;
    let plan = travelled.plan()?;
    let (batches, total) = split(job, how)?;
    if plan.tasks.is_some_and(|planned| planned != total) {
        return Err(JobError::new(format_args!(
            "the plan says {:?} tasks, the split gave {total}",
            plan.tasks
        )));
    }
    let worker =
        LocalWorker { job: &*travelled, id: JobId::generate(), kind: Kind::new(J::KIND)?, spec: &spec };
    let mut sink = LocalSink::new(&travelled)?;
    let mut queue = VecDeque::from(shuffled_repeats(batches, how));
    while let Some(batch) = queue.pop_front() {
        for chunk in worker.run(&batch)? {
            for done in chunk.done {
                let (first, count) = (done.first, done.count);
                let (outputs, tasks) = done.into_parts();
                sink.take(&OutputRun { first, count, outputs: &outputs, tasks: tasks.as_deref() })?;
            }
            for failure in chunk.failed {
                let failures = batch.failures + 1;
                match failure.trouble {
                    FailureKind::Failed(_) | FailureKind::Delayed(..) | FailureKind::TimedOut
                        if failures < DEFAULT_MAX_ATTEMPTS =>
                    {
                        let tasks = RawValue::from_string(format!("[{}]", failure.task.get()))?;
                        queue.push_back(LocalBatch { first: failure.index, count: 1, tasks, failures });
                    }
                    trouble => sink.fail(failure.index, format!("{trouble:?}")),
                }
            }
        }
        if sink.account.stopped.is_some() {
            break;
        }
    }
    sink.reload()?;
    sink.fold_in_order()?;
    let LocalSink { fold, account, failed, .. } = sink.balance(total);
    let report = serde_json::from_str(fold.report()?.get())?;
    let conclusion = fold.conclude(&account);
    Ok(LocalOutcome { report, conclusion, account, failures: failed })
}

/// A batch of a local run.
#[derive(Clone)]
struct LocalBatch {
    first: TaskIndex,
    count: u32,
    tasks: Box<RawValue>,
    failures: u32,
}

fn split<J: Job>(job: &J, how: LocalRun) -> Result<(Vec<LocalBatch>, u64), JobError> {
    let mut split = erased::split(job)?;
    let (mut batches, mut total, mut digest) = (Vec::new(), 0, SplitDigest::default());
    loop {
        let mut tasks = PackedTasks::default();
        let size = 1 + random(how.seed, total) % u64::from(how.batch.max(1));
        let limit = BatchLimit { tasks: u32::try_from(size).unwrap_or(1), bytes: BATCH_MAX_BYTES };
        let step = split.split_into(&mut tasks, &mut digest, limit)?;
        let count = tasks.count();
        if count > 0 {
            batches.push(LocalBatch { first: TaskIndex(total), count, tasks: tasks.finish(), failures: 0 });
            total += u64::from(count);
        }
        if step == SplitStep::End {
            return Ok((batches, total));
        }
    }
}

fn shuffled_repeats(batches: Vec<LocalBatch>, how: LocalRun) -> Vec<LocalBatch> {
    let repeats = batches.iter().flat_map(|batch| (0..how.repeat.max(1)).map(move |_| batch.clone()));
    let mut shuffled: Vec<_> =
        (0..).zip(repeats).map(|(place, batch)| (random(how.seed ^ 1, place), batch)).collect();
    shuffled.sort_by_key(|(place, _)| *place);
    shuffled.into_iter().map(|(_, batch)| batch).collect()
}

struct LocalWorker<'a> {
    job: &'a dyn AnyJob,
    id: JobId,
    kind: Kind,
    spec: &'a RawValue,
}

impl LocalWorker<'_> {
    fn run(&self, local: &LocalBatch) -> Result<Vec<Chunk>, JobError> {
        let batch = Batch {
            job: self.id,
            kind: self.kind.clone(),
            spec: self.spec,
            policy: Policy::default(),
            round: Round(0),
            stage: 0,
            spent: 0,
            version: self.job.version(),
            build: None,
            first: local.first,
            count: local.count,
            tasks: &local.tasks,
        };
        let mut chunks = Vec::new();
        let mut emit = |chunk| chunks.push(chunk);
        let cx = TaskContext::new(self.id, local.first, local.failures, StopSignal::new());
        let run = BatchRun::new(cx, &batch.policy, StopSignal::new(), &mut emit);
        self.job.process_batch(&batch, &mut run.with_immediate_prepare())?;
        Ok(chunks)
    }
}

struct LocalSink<'a> {
    job: &'a Arc<dyn AnyJob>,
    fold: Box<dyn AnyFold>,
    account: Account,
    deliveries: u64,
    /// The outputs so far, if the job folds them in order at its end.
    outputs: BTreeMap<TaskIndex, Box<RawValue>>,
    done: BTreeSet<TaskIndex>,
    failed: BTreeMap<TaskIndex, String>,
}

impl<'a> LocalSink<'a> {
    fn new(job: &'a Arc<dyn AnyJob>) -> Result<Self, JobError> {
        Ok(Self {
            job,
            fold: Arc::clone(job).fold(None)?,
            account: Account::default(),
            deliveries: 0,
            outputs: BTreeMap::new(),
            done: BTreeSet::new(),
            failed: BTreeMap::new(),
        })
    }

    /// Saves the report and loads it again, as a sink that restarts does.
    fn reload(&mut self) -> Result<(), JobError> {
        let saved = self.fold.report()?;
        self.fold = Arc::clone(self.job).fold(Some(&saved))?;
        Ok(())
    }

    fn fold_in_order(&mut self) -> Result<(), JobError> {
        if !self.job.folds_in_order() {
            return Ok(());
        }
        let mut outputs = std::mem::take(&mut self.outputs).into_iter();
        self.fold.fold_in_order(&mut outputs).map_err(JobError::new)?;
        self.reload()
    }

    /// Keeps the outputs of these indices, which lie within the span.
    fn keep(&mut self, span: &OutputRun<'_>, indices: &[TaskIndex]) -> Result<(), JobError> {
        let outputs: Vec<&RawValue> = serde_json::from_str(span.outputs.get())?;
        for index in indices {
            let place = usize::try_from(index.0 - span.first.0)?;
            self.outputs.insert(*index, outputs[place].to_owned());
        }
        Ok(())
    }

    fn take(&mut self, span: &OutputRun<'_>) -> Result<(), JobError> {
        let all = span.first.0..span.first.plus(span.count.into()).0;
        if self.account.stopped.is_some() {
            self.account.late += u64::from(span.count);
            return Ok(());
        }
        let fresh: Vec<_> = all.filter(|index| !self.done.contains(&TaskIndex(*index))).collect();
        let ranges: Vec<_> = fresh.iter().map(|index| *index..index + 1).collect();
        let collected = self.fold.collect_span(span, &ranges).map_err(|error| match error {
            CollectError::Malformed(error) => JobError::from(error),
            CollectError::Panicked(text) => JobError::new(format_args!("collect panicked: {text}")),
        })?;
        self.account.duplicates += u64::from(span.count) - fresh.len() as u64;
        if collected.broke_at.is_some() {
            self.account.stopped = Some("the job has its answer".into());
        }
        let mut folded: Vec<_> = fresh.into_iter().map(TaskIndex).collect();
        folded.retain(|index| collected.broke_at.is_none_or(|last| *index <= last));
        folded.retain(|index| collected.undecodable.iter().all(|(undecodable, _)| undecodable != index));
        if self.job.folds_in_order() {
            self.keep(span, &folded)?;
        }
        self.done.extend(folded);
        for (index, why) in collected.undecodable {
            self.fail(index, why);
        }
        self.deliveries += 1;
        if self.deliveries.is_power_of_two() {
            self.reload()?;
        }
        Ok(())
    }

    fn fail(&mut self, index: TaskIndex, why: String) {
        if self.done.contains(&index) || self.failed.contains_key(&index) {
            self.account.duplicates += 1;
        } else {
            self.failed.insert(index, why);
        }
    }

    /// Fills in the account's numbers over all tasks.
    fn balance(mut self, total: u64) -> Self {
        self.failed.retain(|index, _| !self.done.contains(index));
        self.account.total = Some(total);
        self.account.done = self.done.len() as u64;
        self.account.failed = self.failed.len() as u64;
        self.account.skipped = total - self.account.done - self.account.failed;
        self
    }
}

/// A generator of pseudo-random numbers from a seed, shared by all callers.
#[derive(Debug)]
struct SeededRng {
    seed: u64,
    drawn: AtomicU64,
}

impl SeededRng {
    fn new(seed: u64) -> Self {
        Self { seed, drawn: AtomicU64::new(0) }
    }

    /// Draws a number below `end`, which must not be 0.
    fn draw_below(&self, end: usize) -> usize {
        let draw = random(self.seed, self.drawn.fetch_add(1, Ordering::Relaxed));
        usize::try_from(draw % end as u64).unwrap_or(0)
    }
}

fn random(seed: u64, place: u64) -> u64 {
    xxh3_64_with_seed(&place.to_le_bytes(), seed)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{TaskError, wire::Malformed};

    /// Squares of 0..tasks; task 3 is rejected, task 5 fails twice, task 7 always panics.
    #[derive(Serialize, Deserialize)]
    struct Squares {
        tasks: u64,
        stop_at: Option<u64>,
    }

    impl Job for Squares {
        const KIND: &'static str = "squares";
        type Task = u64;
        type Output = u64;
        type Report = u64;

        fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
            (0..self.tasks).map(Ok)
        }
        #[expect(clippy::panic_in_result_fn, reason = "one of the ways a task behaves badly")]
        fn process(&self, task: u64, cx: &TaskContext) -> Result<u64, TaskError> {
            assert_eq!(TaskIndex(task), cx.index());
            match task {
                3 => Err(TaskError::reject("three")),
                5 if cx.attempt() < 3 => Err(TaskError::failed("not yet")),
                7 => panic!("seven"),
                _ => Ok(task * task),
            }
        }
        fn collect(&self, report: &mut u64, index: TaskIndex, output: u64) -> ControlFlow<()> {
            *report += output;
            if self.stop_at == Some(index.0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    #[test]
    fn repeated_task_counts_once() {
        let job = Squares { tasks: 100, stop_at: None };
        for seed in 0..20 {
            let outcome = run_local(&job, LocalRun { repeat: 3, batch: 9, seed }).unwrap();
            assert_eq!(outcome.report, (0..100u64).map(|n| n * n).sum::<u64>() - 9 - 49);
            assert_eq!((outcome.account.done, outcome.account.failed, outcome.account.skipped), (98, 2, 0));
            assert_eq!(outcome.account.duplicates, 98 * 2 + 2 * 2);
            assert!(outcome.failures[&TaskIndex(3)].contains("three"));
            assert!(outcome.failures[&TaskIndex(7)].contains("seven"));
        }
    }

    #[test]
    fn break_ends_the_fold() {
        let job = Squares { tasks: 100, stop_at: Some(10) };
        let outcome = run_local(&job, LocalRun { repeat: 1, batch: 100, seed: 1 }).unwrap();
        assert!(outcome.account.stopped.is_some());
        assert!(outcome.account.skipped > 0);
        let account = outcome.account;
        assert_eq!(account.done + account.failed + account.skipped, 100);
    }

    #[test]
    fn bad_task_spares_its_neighbours() {
        let job = erased::open::<Squares>(&raw(r#"{"tasks":9,"stop_at":null}"#)).unwrap();
        let spec = job.spec().unwrap();
        let tasks = raw(r#"[0,"no number",2]"#);
        let mut batch = Batch {
            job: JobId::generate(),
            kind: Kind::new("squares").unwrap(),
            spec: &spec,
            policy: Policy::default(),
            round: Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: TaskIndex(0),
            count: 3,
            tasks: &tasks,
        };
        let run = |batch: &Batch<'_>| -> Result<Vec<Chunk>, Malformed> {
            let mut chunks = Vec::new();
            let mut emit = |chunk| chunks.push(chunk);
            let cx = TaskContext::new(batch.job, batch.first, 0, StopSignal::new());
            job.process_batch(batch, &mut BatchRun::new(cx, &batch.policy, StopSignal::new(), &mut emit))?;
            Ok(chunks)
        };
        let chunk = run(&batch).unwrap().remove(0);
        assert_eq!(
            chunk.done.iter().map(|done| (done.first.0, done.count)).collect::<Vec<_>>(),
            [(0, 1), (2, 1)]
        );
        assert_eq!(chunk.failed[0].task.get(), "\"no number\"");
        assert!(
            matches!(&chunk.failed[0].trouble, FailureKind::Undecodable(why) if why.contains("kind squares"))
        );
        batch.count = 4;
        assert!(run(&batch).unwrap_err().reason.contains("says it has 4 tasks, but has 3"));
    }

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.into()).unwrap()
    }

    /// Reciprocals of 0 and 1.
    #[derive(Serialize, Deserialize)]
    struct Reciprocals;

    impl Job for Reciprocals {
        const KIND: &'static str = "reciprocals";
        type Task = f64;
        type Output = f64;
        type Report = f64;

        fn split(&self) -> impl Iterator<Item = Result<f64, JobError>> + Send {
            [0.0, 1.0].into_iter().map(Ok)
        }

        fn process(&self, number: f64, _: &TaskContext) -> Result<f64, TaskError> {
            Ok(1.0 / number)
        }

        fn collect(&self, sum: &mut f64, _: TaskIndex, output: f64) -> ControlFlow<()> {
            *sum += output;
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn nonfinite_output_is_refused() {
        let outcome = run_local(&Reciprocals, Repeat(2)).unwrap();
        assert_eq!(outcome.report, 1.0);
        assert_eq!((outcome.account.done, outcome.account.failed), (1, 1));
        let why = &outcome.failures[&TaskIndex(0)];
        assert!(why.contains("output is infinite, but only finite floats travel"), "{why}");
    }
}
