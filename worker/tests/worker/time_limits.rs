//! Tasks that run on after their time limit, on the memory transport.

use std::{
    cell::Cell,
    collections::BTreeMap,
    future::Future,
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use gristmill_shared::{
    Address, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy, QueueRole, Registry, Round,
    TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results},
};
use gristmill_worker::{Worker, WorkerError, WorkerReport};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::timeout,
};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const ENDLESS_TASK: i64 = -1;
const HELD_TASK: i64 = -2;
const CHECKING_TASK: i64 = -3;

static RELEASED_FLAG: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
/// Notified when the thread that ran [`HELD_TASK`] has ended.
static THREAD_ENDED: Notify = Notify::const_new();

fn wait_for_release() {
    drop(RELEASED_FLAG.1.wait_while(RELEASED_FLAG.0.lock().unwrap(), |released| !*released).unwrap());
}

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
                wait_for_release();
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

async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

/// A worker with one slot.
struct Bench {
    transport: Arc<MemoryTransport>,
    leave: oneshot::Sender<()>,
    worker: JoinHandle<Result<WorkerReport, WorkerError>>,
    /// The outcomes by index so far: outputs, or reasons with attempts.
    outcomes: BTreeMap<u64, Vec<serde_json::Value>>,
}

impl Bench {
    async fn start(max_attempts: u32, batches: &[&[i64]]) -> Self {
        let transport = MemoryTransport::new();
        transport.open_lane(&Lane::default()).await.unwrap();
        let policy = Policy { max_attempts, task_timeout_ms: Some(100), ..Policy::default() };
        let publisher = transport.publisher().await.unwrap();
        let mut first = TaskIndex(10);
        for tasks in batches {
            let message = Batch {
                job: JobId::generate(),
                kind: Kind::new("slow").unwrap(),
                spec: &to_raw_value(&json!(null)).unwrap(),
                policy: policy.clone(),
                round: Round(0),
                stage: 0,
                spent: 0,
                version: 0,
                build: None,
                first,
                count: u32::try_from(tasks.len()).unwrap(),
                tasks: &to_raw_value(tasks).unwrap(),
            }
            .to_message(Headers::default(), "test");
            first = first.plus(tasks.len() as u64);
            let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
            publish_until_stored(&*publisher, vec![Outgoing { to, message }]).await.unwrap();
        }
        let mut registry = Registry::default();
        registry.register::<Slow>().unwrap();
        let worker = Worker::new(registry, "test-worker".parse().unwrap()).slots(NonZeroU16::MIN);
        let (leave, left) = oneshot::channel::<()>();
        let running = worker.run_until(Arc::clone(&transport) as _, async {
            let _ = left.await;
        });
        Self { transport, leave, worker: tokio::spawn(running), outcomes: BTreeMap::new() }
    }

    /// Takes results until this number of tasks has an outcome.
    async fn outcomes(&mut self, tasks: usize) {
        let queue = QueueRole::Results.of(&Lane::default());
        let mut consumer = self.transport.consume(&queue, 10).await.unwrap();
        while self.outcomes.len() < tasks {
            for delivery in within(consumer.recv(1)).await.unwrap() {
                let results: Results<'_> = wire::decode(&delivery.message).unwrap();
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
                delivery.receipt.ack();
            }
        }
    }

    async fn is_empty(&self, role: QueueRole) -> bool {
        let mut consumer = self.transport.consume(&role.of(&Lane::default()), 1).await.unwrap();
        timeout(Duration::from_millis(50), consumer.recv(1)).await.is_err()
    }
}

const TIMEOUT_REASON: &str = "it ran longer than the job's task timeout of 100ms";

#[tokio::test]
async fn task_that_checks_its_limit_keeps_its_thread() {
    let mut bench = Bench::start(1, &[&[1, CHECKING_TASK, 3]]).await;
    bench.outcomes(3).await;
    let expected = [(10, vec![json!(1)]), (11, vec![json!([TIMEOUT_REASON, 1])]), (12, vec![json!(3)])];
    assert_eq!(bench.outcomes, BTreeMap::from(expected));
    bench.leave.send(()).unwrap();
    let report = within(bench.worker).await.unwrap().unwrap();
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
    let error = within(bench.worker).await.unwrap().unwrap_err();
    assert!(matches!(error, WorkerError::Stuck { threads: 2, slots: 1 }), "{error}");
}

/// An abandoned thread publishes no more outcomes, and ends.
#[tokio::test]
async fn abandoned_thread_is_ignored_and_ends() {
    let mut bench = Bench::start(1, &[&[HELD_TASK, 5], &[6]]).await;
    bench.outcomes(3).await; // by another thread, while the first is still held
    *RELEASED_FLAG.0.lock().unwrap() = true;
    RELEASED_FLAG.1.notify_all();
    within(THREAD_ENDED.notified()).await;
    assert!(bench.is_empty(QueueRole::Results).await, "an outcome was published twice");
    bench.leave.send(()).unwrap();
    let report = within(bench.worker).await.unwrap().unwrap();
    assert_eq!((report.done, report.errors, report.abandoned), (2, 1, 0));
    let expected = [(10, vec![json!([TIMEOUT_REASON, 1])]), (11, vec![json!(5)]), (12, vec![json!(6)])];
    assert_eq!(bench.outcomes, BTreeMap::from(expected));
}

#[tokio::test]
async fn too_many_stuck_threads_end_the_worker() {
    let mut bench = Bench::start(1, &[&[ENDLESS_TASK], &[ENDLESS_TASK], &[7]]).await;
    let error = within(&mut bench.worker).await.unwrap().unwrap_err();
    assert!(matches!(error, WorkerError::Stuck { threads: 2, slots: 1 }), "{error}");
    bench.outcomes(2).await;
    assert_eq!(bench.outcomes.keys().collect::<Vec<_>>(), [&10, &11]);
    let mut again = bench.transport.consume(&QueueRole::Requeued.of(&Lane::default()), 1).await.unwrap();
    let handed_back = within(again.recv(1)).await.unwrap();
    assert_eq!((handed_back[0].deliveries_before, handed_back[0].message.headers.loss), (0, 0));
    assert!(bench.is_empty(QueueRole::Tasks).await, "it was not handed back but dropped");
}
