//! Tasks that may crash their worker, on the memory transport, where a closed connection stands for
//! a crashed worker.

use std::{
    collections::BTreeSet,
    fmt,
    ops::{ControlFlow, Range},
    sync::Arc,
};

use async_trait::async_trait;
use gristmill_shared::{
    Consumer, Headers, Health, Job, JobError, Policy, Queue, QueueRole, TaskContext, TaskError, TaskIndex,
    Transport, TransportError, memory::MemoryTransport, testing::TransportDecorator,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, watch};

use crate::support::{
    RunningWorker, TestBatch, consume, open_lane, publish, record_results, take_json_results, test_worker,
    to_queue, within,
};

/// The last three digits of a poisoned task, in jobs that have poison.
const POISON_NUMBER: u64 = 37;

/// Notified when a worker begins the poison.
static POISON_BEGUN: Notify = Notify::const_new();

/// A job that returns its tasks, but for the poison, which never ends, and for number 0, which
/// fails.
#[derive(Serialize, Deserialize)]
struct Fatal;

impl Job for Fatal {
    const KIND: &'static str = "fatal";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        match task {
            0 => Err(TaskError::failed("nought")),
            _ if task % 1000 == POISON_NUMBER => {
                POISON_BEGUN.notify_one();
                loop {
                    std::thread::park(); // the test decides on the end of the connection
                }
            }
            _ => Ok(task),
        }
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn start(transport: Arc<dyn Transport>, slots: u16) -> RunningWorker {
    RunningWorker::start(test_worker::<Fatal>(slots), transport)
}

async fn send(transport: &dyn Transport, role: QueueRole, first: u64, tasks: &[u64], headers: Headers) {
    let policy = Policy { max_attempts: 2, ..Policy::default() };
    let batch = TestBatch { policy, first, headers, ..TestBatch::of(Fatal::KIND) };
    publish(transport, vec![to_queue(role, batch.message(tasks))]).await;
}

/// Takes the only message of a queue this many times, and never settles it.
async fn take_unsettled(transport: &dyn Transport, role: QueueRole, times: usize) {
    for _ in 0..times {
        let mut consumer = consume(transport, role, 1).await;
        assert_eq!(within(consumer.recv(1)).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn first_redelivery_runs_the_batch() {
    let transport = open_lane().await;
    send(&*transport, QueueRole::Tasks, 100, &[1, 2, 3], Headers::default()).await;
    take_unsettled(&*transport, QueueRole::Tasks, 1).await;
    let _worker = start(Arc::clone(&transport) as _, 1);
    assert_eq!(take_json_results(&*transport).await["done"][0]["count"], 3);
}

#[tokio::test]
async fn second_redelivery_splits_the_batch() {
    let transport = open_lane().await;
    let tasks: Vec<u64> = (100..164).collect();
    send(&*transport, QueueRole::Tasks, 100, &tasks, Headers::default()).await;
    take_unsettled(&*transport, QueueRole::Tasks, 2).await;
    let _worker = start(Arc::clone(&transport) as _, 1);
    for part in 0..16 {
        let first = 100 + 4 * part;
        let outputs = [first, first + 1, first + 2, first + 3];
        let done = json!([{"first": first, "count": 4, "outputs": outputs}]);
        assert_eq!(take_json_results(&*transport).await["done"], done);
    }
}

/// A suspect alone gains a loss before it runs, and keeps it when it is retried.
#[tokio::test]
async fn redelivered_suspect_gains_a_loss() {
    let transport = open_lane().await;
    send(&*transport, QueueRole::Suspect, 5, &[0], Headers::default()).await;
    take_unsettled(&*transport, QueueRole::Suspect, 1).await;
    let worker = start(Arc::clone(&transport) as _, 1);
    let results = take_json_results(&*transport).await; // after its second and last attempt
    assert_eq!((&results["failed"][0]["attempts"], &results["failed"][0]["losses"]), (&json!(2), &json!(1)));
    worker.stop().await;
}

#[tokio::test]
async fn third_loss_fails_the_task_unrun() {
    let transport = open_lane().await;
    let headers = Headers { attempt: 1, loss: 2, ..Headers::default() };
    send(&*transport, QueueRole::Suspect, 5, &[7], headers).await;
    take_unsettled(&*transport, QueueRole::Suspect, 1).await;
    let worker = start(Arc::clone(&transport) as _, 1);
    let results = take_json_results(&*transport).await;
    let failed =
        json!([{"index": 5, "reason": "its worker died 3 times", "attempts": 1, "losses": 3, "task": 7}]);
    assert_eq!((&results["failed"], &results["done"]), (&failed, &json!([])));
    assert_eq!(worker.stop().await.batches, 0, "it was run");
}

#[tokio::test]
async fn reconnected_worker_finds_no_poison() {
    let memory = open_lane().await;
    let headers = Headers { loss: 2, ..Headers::default() };
    send(&*memory, QueueRole::Suspect, 5, &[7], headers).await;
    take_unsettled(&*memory, QueueRole::Suspect, 1).await;
    let _worker =
        start(Arc::new(ReconnectedTransport(Arc::clone(&memory), watch::Sender::new(Health::Ready))), 1);
    let results = take_json_results(&*memory).await;
    assert_eq!((&results["done"][0]["outputs"], results.get("failed")), (&json!([7]), None));
}

/// A complete isolation: two crashes with the original batch, one for each step down to a single
/// task, and two more until the third redelivery of that task is a failure. Then several poisoned
/// tasks at once, in the slots of the same workers.
#[tokio::test(flavor = "multi_thread")]
async fn poison_fails_and_neighbours_succeed() {
    let innocent = |thousand: u64| thousand + 100..thousand + 164; // held by workers that crash
    let crashes = run_with_crashes(&[1..65, innocent(1000), innocent(2000), innocent(3000)]).await;
    assert_eq!(crashes, 6);
    let crashes = run_with_crashes(&[1..65, innocent(1000), 2001..2065, 3001..3065, 4001..4065]).await;
    assert!(crashes >= 4 * 3, "{crashes} crashes, and three for each that was found alone");
}

/// Runs the batches with workers of two slots, each of which crashes at a poisoned task. Returns
/// the number of crashes.
async fn run_with_crashes(batches: &[Range<u64>]) -> usize {
    let broker = open_lane().await;
    for batch in batches {
        let tasks: Vec<u64> = batch.clone().collect();
        send(&*broker, QueueRole::Tasks, batch.start, &tasks, Headers::default()).await;
    }
    let (poisoned, healthy): (BTreeSet<u64>, BTreeSet<u64>) =
        batches.iter().cloned().flatten().partition(|task| task % 1000 == POISON_NUMBER);
    let (mut done, mut failed, mut crashes) = (BTreeSet::new(), BTreeSet::new(), 0);
    let mut results = consume(&*broker, QueueRole::Results, 10).await;
    let mut connection = broker.connect();
    let mut worker = start(Arc::clone(&connection) as _, 2);
    while done.len() + failed.len() < poisoned.len() + healthy.len() {
        let deliveries = tokio::select! {
            deliveries = within(results.recv(10)) => deliveries.unwrap(),
            () = POISON_BEGUN.notified() => {
                connection.close().await;
                worker.ended().await.unwrap_err();
                crashes += 1;
                connection = broker.connect();
                worker = start(Arc::clone(&connection) as _, 2);
                continue;
            }
        };
        record_results(deliveries, |results| {
            for span in results.done {
                done.extend(serde_json::from_str::<Vec<u64>>(span.outputs.get()).unwrap());
            }
            for task in results.failed {
                assert_eq!((&*task.reason, task.losses), ("its worker died 3 times", 3), "{}", task.index);
                failed.insert(task.index.0);
            }
        });
    }
    assert_eq!((failed, done), (poisoned, healthy));
    assert_eq!(worker.stop().await.abandoned, 0);
    crashes
}

/// A connection that is regained while its consumers are made.
#[derive(Debug)]
struct ReconnectedTransport(Arc<MemoryTransport>, watch::Sender<Health>);

impl fmt::Display for ReconnectedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl TransportDecorator for ReconnectedTransport {
    fn inner(&self) -> &dyn Transport {
        &*self.0
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        for health in [Health::Reconnecting("a test".into()), Health::Ready] {
            self.1.send_replace(health);
        }
        self.0.consume(queue, prefetch).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.1.subscribe()
    }
}
