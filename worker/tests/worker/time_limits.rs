//! Tasks that run on after their time limit, on the memory transport.

use std::{cell::Cell, collections::BTreeMap, ops::ControlFlow, sync::Arc};

use gristmill_shared::{
    Job, JobError, Policy, QueueRole, TaskContext, TaskError, TaskIndex, memory::MemoryTransport,
};
use gristmill_worker::WorkerError;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

use crate::support::{
    ReleaseFlag, RunningWorker, TestBatch, consume, is_empty, open_lane, publish, take_results, test_worker,
    within,
};

const ENDLESS_TASK: i64 = -1;
const HELD_TASK: i64 = -2;
const CHECKING_TASK: i64 = -3;

static RELEASED_FLAG: ReleaseFlag = ReleaseFlag::new();
/// Notified when the thread that ran [`HELD_TASK`] has ended.
static THREAD_ENDED: Notify = Notify::const_new();

struct ThreadEndNotifier(Cell<bool>);

impl Drop for ThreadEndNotifier {
    fn drop(&mut self) {
        if self.0.get() {
            THREAD_ENDED.notify_one();
        }
    }
}

thread_local! {
    static THREAD_MARK: ThreadEndNotifier = const { ThreadEndNotifier(Cell::new(false)) };
}

/// A job that returns its tasks, sooner or later.
#[derive(Serialize, Deserialize)]
struct Slow;

impl Job for Slow {
    const KIND: &'static str = "slow";
    type Task = i64;
    type Output = i64;
    type Report = i64;

    fn split(&self) -> impl Iterator<Item = Result<i64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: i64, cx: &TaskContext) -> Result<i64, TaskError> {
        match task {
            ENDLESS_TASK => loop {
                std::thread::park();
            },
            HELD_TASK => {
                THREAD_MARK.with(|thread| thread.0.set(true));
                RELEASED_FLAG.wait();
            }
            CHECKING_TASK => loop {
                cx.check()?;
                std::thread::yield_now();
            },
            _ => {}
        }
        Ok(task)
    }
    fn collect(&self, _: &mut i64, _: TaskIndex, _: i64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A worker with one slot.
struct Bench {
    transport: Arc<MemoryTransport>,
    worker: RunningWorker,
    /// The outcomes by index so far: outputs, or reasons with attempts.
    outcomes: BTreeMap<u64, Vec<serde_json::Value>>,
}

impl Bench {
    async fn start(max_attempts: u32, batches: &[&[i64]]) -> Self {
        let transport = open_lane().await;
        let policy = Policy { max_attempts, task_timeout_ms: Some(100), ..Policy::default() };
        let mut first = 10;
        for tasks in batches {
            let batch = TestBatch { policy: policy.clone(), first, ..TestBatch::of(Slow::KIND) };
            publish(&*transport, vec![batch.outgoing(tasks)]).await;
            first += tasks.len() as u64;
        }
        let worker = RunningWorker::start(test_worker::<Slow>(1), Arc::clone(&transport) as _);
        Self { transport, worker, outcomes: BTreeMap::new() }
    }

    /// Takes results until this number of tasks has an outcome.
    async fn outcomes(&mut self, tasks: usize) {
        let mut consumer = consume(&*self.transport, QueueRole::Results, 10).await;
        while self.outcomes.len() < tasks {
            take_results(&mut *consumer, 1, |results| {
                for span in results.done {
                    let outputs: Vec<serde_json::Value> = serde_json::from_str(span.outputs.get()).unwrap();
                    for (index, output) in (span.first.0..).zip(outputs) {
                        self.outcomes.entry(index).or_default().push(output);
                    }
                }
                for failed in results.failed {
                    let outcome = json!([failed.reason, failed.attempts]);
                    self.outcomes.entry(failed.index.0).or_default().push(outcome);
                }
            })
            .await;
        }
    }
}

const TIMEOUT_REASON: &str = "it ran longer than the job's task timeout of 100ms";

#[tokio::test]
async fn task_that_checks_its_limit_keeps_its_thread() {
    let mut bench = Bench::start(1, &[&[1, CHECKING_TASK, 3]]).await;
    bench.outcomes(3).await;
    let expected = [(10, vec![json!(1)]), (11, vec![json!([TIMEOUT_REASON, 1])]), (12, vec![json!(3)])];
    assert_eq!(bench.outcomes, BTreeMap::from(expected));
    let report = bench.worker.stop().await;
    assert_eq!((report.batches, report.errors), (1, 1));
}

/// A task that does not check its limit loses its thread, and its neighbours run again.
#[tokio::test]
async fn overdue_task_loses_its_thread() {
    let mut bench = Bench::start(2, &[&[1, ENDLESS_TASK, 3]]).await;
    bench.outcomes(2).await;
    let expected = [(10, vec![json!(1)]), (12, vec![json!(3)])];
    assert_eq!(bench.outcomes, BTreeMap::from(expected));
    // It is retried as any failed task, and holds the next thread as well, which is one too many.
    bench.outcomes(3).await;
    assert_eq!(bench.outcomes[&11], [json!([TIMEOUT_REASON, 2])]);
    let error = bench.worker.ended().await.unwrap_err();
    assert!(matches!(error, WorkerError::Stuck { threads: 2, slots: 1 }), "{error}");
}

/// An abandoned thread publishes no more outcomes, and ends.
#[tokio::test]
async fn abandoned_thread_is_ignored_and_ends() {
    let mut bench = Bench::start(1, &[&[HELD_TASK, 5], &[6]]).await;
    bench.outcomes(3).await; // by another thread, while the first is still held
    RELEASED_FLAG.release();
    within(THREAD_ENDED.notified()).await;
    assert!(is_empty(&*bench.transport, QueueRole::Results).await, "an outcome was published twice");
    let report = bench.worker.stop().await;
    assert_eq!((report.done, report.errors, report.abandoned), (2, 1, 0));
    let expected = [(10, vec![json!([TIMEOUT_REASON, 1])]), (11, vec![json!(5)]), (12, vec![json!(6)])];
    assert_eq!(bench.outcomes, BTreeMap::from(expected));
}

#[tokio::test]
async fn too_many_stuck_threads_end_the_worker() {
    let mut bench = Bench::start(1, &[&[ENDLESS_TASK], &[ENDLESS_TASK], &[7]]).await;
    let error = bench.worker.ended().await.unwrap_err();
    assert!(matches!(error, WorkerError::Stuck { threads: 2, slots: 1 }), "{error}");
    bench.outcomes(2).await;
    assert_eq!(bench.outcomes.keys().collect::<Vec<_>>(), [&10, &11]);
    let mut again = consume(&*bench.transport, QueueRole::Requeued, 1).await;
    let handed_back = within(again.recv(1)).await.unwrap();
    assert_eq!((handed_back[0].deliveries_before, handed_back[0].message.headers.loss), (0, 0));
    assert!(is_empty(&*bench.transport, QueueRole::Tasks).await, "it was not handed back but dropped");
}
