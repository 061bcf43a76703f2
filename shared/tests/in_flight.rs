//! Tests of async tasks: several tasks of a batch in flight on one slot.

use std::{
    future::pending,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use gristmill_shared::{
    BatchRun, Chunk, FailureKind, Job, JobError, JobId, Kind, Policy, Round, RunningIndex, StopSignal,
    TaskContext, TaskError, TaskIndex, erase,
    testing::{Repeat, run_local},
    wire::Batch,
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};

const IN_FLIGHT: u32 = 4;
const LONG_WAIT: Duration = Duration::from_secs(600);

/// The behaviour of a task.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum TaskScript {
    Sleep(u64),
    Hang,
    Panic,
    /// Blocks its thread until the test has observed it.
    Block,
    /// Waits until this many tasks are in flight; its output is the maximum so far.
    Meet(u32),
}

static TASKS_BLOCKED: (Mutex<bool>, std::sync::Condvar) = (Mutex::new(true), std::sync::Condvar::new());

#[derive(Serialize, Deserialize, Default)]
struct ScriptedJob {
    #[serde(skip)]
    here: AtomicU32,
    #[serde(skip)]
    most: AtomicU32,
}

impl Job for ScriptedJob {
    const KIND: &'static str = "acts";
    const IN_FLIGHT: u32 = IN_FLIGHT;
    type Task = TaskScript;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<TaskScript, JobError>> + Send {
        (0..20).map(|number| Ok(TaskScript::Sleep(number % 3)))
    }

    async fn process_async(&self, act: TaskScript, cx: &TaskContext) -> Result<u64, TaskError> {
        match act {
            TaskScript::Sleep(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            TaskScript::Hang => pending().await,
            TaskScript::Panic => panic!("as asked"),
            TaskScript::Block => {
                drop(TASKS_BLOCKED.1.wait_while(TASKS_BLOCKED.0.lock().unwrap(), |blocked| *blocked).unwrap())
            }
            TaskScript::Meet(others) => {
                let here = self.here.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(here, Ordering::SeqCst);
                while self.most.load(Ordering::SeqCst) < others {
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                self.here.fetch_sub(1, Ordering::SeqCst);
                return Ok(self.most.load(Ordering::SeqCst).into());
            }
        }
        Ok(cx.index().0)
    }

    fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
        *report += output;
        ControlFlow::Continue(())
    }
}

/// The outcomes of a batch: each chunk's outputs and failures by index.
type ChunkOutcomes = Vec<(IndexedOutputs, IndexedFailures)>;
type IndexedOutputs = Vec<(u64, serde_json::Value)>;
type IndexedFailures = Vec<(u64, FailureKind)>;

fn flatten(chunk: Chunk) -> (IndexedOutputs, IndexedFailures) {
    let outputs = chunk.done.into_iter().flat_map(|done| {
        let first = done.first.0;
        let outputs: Vec<serde_json::Value> = serde_json::from_str(done.into_outputs().get()).unwrap();
        (first..).zip(outputs)
    });
    let failed = chunk.failed.into_iter().map(|failure| (failure.index.0, failure.trouble));
    (outputs.collect(), failed.collect())
}

/// Runs a batch of these tasks on this thread. Calls `on_chunk` after each chunk.
fn run(
    acts: &[TaskScript],
    timeout_ms: Option<u64>,
    stop: StopSignal,
    running: &RunningIndex,
    mut on_chunk: impl FnMut(&ChunkOutcomes) + Send,
) -> (u32, ChunkOutcomes) {
    let tasks = to_raw_value(acts).unwrap();
    let batch = Batch {
        job: JobId::generate(),
        kind: Kind::new("acts").unwrap(),
        spec: &to_raw_value(&json!({})).unwrap(),
        policy: Policy { task_timeout_ms: timeout_ms, ..Policy::default() },
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(0),
        count: u32::try_from(acts.len()).unwrap(),
        tasks: &tasks,
    };
    let mut chunks = Vec::new();
    let mut emit = |chunk| {
        chunks.push(flatten(chunk));
        on_chunk(&chunks);
    };
    let cx = TaskContext::new(batch.job, batch.first, 0, stop);
    let run = BatchRun::new(cx, &batch.policy, StopSignal::new(), &mut emit);
    let ran =
        erase(ScriptedJob::default()).process_batch(&batch, &mut run.with_running_index(running)).unwrap();
    (ran, chunks)
}

fn run_unstopped(acts: &[TaskScript], timeout_ms: Option<u64>) -> (u32, ChunkOutcomes) {
    run(acts, timeout_ms, StopSignal::new(), &RunningIndex::default(), |_| {})
}

#[test]
fn outcomes_leave_in_index_order() {
    let acts: Vec<_> = (0..40).map(|place| TaskScript::Sleep((40 - place) % 7 * 5)).collect();
    let (ran, handed) = run_unstopped(&acts, None);
    let indices: Vec<_> = handed.iter().flat_map(|(done, _)| done).map(|(index, _)| *index).collect();
    assert_eq!((ran, indices), (40, (0..40).collect()));
}

#[test]
fn in_flight_reaches_its_bound() {
    let (_, handed) = run_unstopped(&[TaskScript::Meet(IN_FLIGHT); 12], None);
    let most = handed.iter().flat_map(|(done, _)| done).map(|(_, most)| most.as_u64().unwrap()).max();
    assert_eq!(most, Some(IN_FLIGHT.into()));
}

/// Returns the indices of a batch that have an output, and its failures.
fn outcomes(acts: &[TaskScript], timeout_ms: Option<u64>) -> (Vec<u64>, IndexedFailures) {
    let (ran, handed) = run_unstopped(acts, timeout_ms);
    assert_eq!(ran as usize, acts.len());
    let done = handed.iter().flat_map(|(done, _)| done).map(|(index, _)| *index);
    (done.collect(), handed.iter().flat_map(|(_, failed)| failed.clone()).collect())
}

#[test]
fn each_task_has_its_own_deadline() {
    let (done, failed) = outcomes(
        &[TaskScript::Sleep(1), TaskScript::Hang, TaskScript::Sleep(2), TaskScript::Sleep(3)],
        Some(2_000),
    );
    assert_eq!((done, failed), (vec![0, 2, 3], vec![(1, FailureKind::TimedOut)]));
}

#[test]
fn panic_fails_its_own_task_alone() {
    let (done, failed) = outcomes(&[TaskScript::Sleep(1), TaskScript::Panic, TaskScript::Sleep(2)], None);
    assert_eq!((done, failed), (vec![0, 2], vec![(1, FailureKind::Failed("panic: as asked".into()))]));
}

/// A stop ends tasks that hang. Chunks of the tasks before them leave first.
#[test]
fn stop_ends_hanging_tasks() {
    let stop = StopSignal::new();
    let stopping = stop.clone();
    let began = Instant::now();
    // Stopped by the first chunk, which must leave though the task after it hangs.
    let (ran, handed) = run(
        &[TaskScript::Sleep(0), TaskScript::Hang, TaskScript::Sleep(0)],
        None,
        stop,
        &RunningIndex::default(),
        move |_| {
            stopping.stop();
        },
    );
    assert_eq!((ran, handed.len()), (1, 1), "{handed:?}");
    assert_eq!(handed[0].0, [(0, json!(0))]);
    assert!(began.elapsed() < LONG_WAIT, "{:?}", began.elapsed());
}

#[test]
fn blocking_task_is_recorded() {
    let running = Arc::new(RunningIndex::default());
    let noted = Arc::clone(&running);
    let slot = std::thread::spawn(move || {
        run(&[TaskScript::Hang, TaskScript::Block], Some(1_000), StopSignal::new(), &noted, |_| {})
    });
    let began = Instant::now();
    // Task 0 was polled first and hangs as well, but it is task 1 that holds the thread.
    while running.get() != Some(TaskIndex(1)) {
        assert!(began.elapsed() < LONG_WAIT, "{running:?}");
        std::thread::yield_now();
    }
    *TASKS_BLOCKED.0.lock().unwrap() = false;
    TASKS_BLOCKED.1.notify_all();
    let (ran, _) = slot.join().unwrap();
    assert_eq!((ran, running.get()), (2, None));
}

#[test]
fn async_job_runs_locally() {
    let outcome = run_local(&ScriptedJob::default(), Repeat(2)).unwrap();
    assert_eq!(outcome.report, 190);
}

/// A job that implements neither form of `process`.
#[derive(Serialize, Deserialize)]
struct UnimplementedJob;

impl Job for UnimplementedJob {
    const KIND: &'static str = "neither";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..2).map(Ok)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[test]
fn job_without_process_gets_a_hint() {
    let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
    let FailureKind::Rejected(why) = UnimplementedJob.process(1, &cx).unwrap_err().into_kind() else {
        panic!("it would be tried again")
    };
    assert!(why.contains("kind neither") && why.contains("hint: write one of them"), "{why}");
}
