//! Tasks that do not end while their worker leaves, on the memory transport.

use std::{future::Future, num::NonZeroU16, ops::ControlFlow, sync::Arc, time::Duration};

use gristmill_shared::{
    Address, Delivery, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy, QueueRole, Registry,
    Round, TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results},
};
use gristmill_worker::{Worker, WorkerReport};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const TEST_GRACE: Duration = Duration::from_millis(50);
const ENDLESS_TASK: u64 = 1;
/// A task whose output is published at once, since it is large.
const LARGE_TASK: u64 = 2;
const CLEAN_STOPS: usize = 5;

/// A job of which some tasks do not end.
#[derive(Serialize, Deserialize)]
struct EndlessTasks;

static BEGUN_NOTIFY: Notify = Notify::const_new();

impl Job for EndlessTasks {
    const KIND: &'static str = "endless";
    type Task = u64;
    type Output = String;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<String, TaskError> {
        match task {
            ENDLESS_TASK => {
                BEGUN_NOTIFY.notify_one();
                loop {
                    std::thread::park();
                }
            }
            LARGE_TASK => Ok("x".repeat(500_000)),
            _ => Ok(String::new()),
        }
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: String) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

async fn lane_with(role: QueueRole, tasks: &[u64]) -> Arc<MemoryTransport> {
    let broker = MemoryTransport::new();
    broker.open_lane(&Lane::default()).await.unwrap();
    let message = Batch {
        job: JobId::generate(),
        kind: Kind::new("endless").unwrap(),
        spec: &to_raw_value(&json!(null)).unwrap(),
        policy: Policy::default(),
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(10),
        count: u32::try_from(tasks.len()).unwrap(),
        tasks: &to_raw_value(tasks).unwrap(),
    }
    .to_message(Headers::default(), "test");
    let publisher = broker.publisher().await.unwrap();
    let to = Address::Queue(role.of(&Lane::default()));
    publish_until_stored(&*publisher, vec![Outgoing { to, message }]).await.unwrap();
    broker
}

/// Stops a worker that runs a task without an end, and waits until it has left in order.
async fn clean_stop(broker: &Arc<MemoryTransport>) -> WorkerReport {
    let mut registry = Registry::default();
    registry.register::<EndlessTasks>().unwrap();
    let connection = broker.connect();
    let (leave, left) = oneshot::channel::<()>();
    let worker = Worker::new(registry, "test-worker".parse().unwrap())
        .slots(NonZeroU16::MIN)
        .grace(TEST_GRACE)
        .run_until(Arc::clone(&connection) as _, async {
            let _ = left.await;
        });
    let worker = tokio::spawn(worker);
    within(BEGUN_NOTIFY.notified()).await;
    leave.send(()).unwrap();
    let report = within(worker).await.unwrap().unwrap();
    connection.close().await;
    report
}

async fn take(broker: &MemoryTransport, role: QueueRole) -> Delivery {
    let mut consumer = broker.consume(&role.of(&Lane::default()), 1).await.unwrap();
    timeout(Duration::from_secs(5), consumer.recv(1)).await.expect("it is not there").unwrap().remove(0)
}

/// Both parts are one test, since their tasks share one notification.
#[tokio::test(flavor = "multi_thread")]
async fn endless_task_is_requeued_at_no_cost() {
    for (sent, back) in [(QueueRole::Tasks, QueueRole::Requeued), (QueueRole::Suspect, QueueRole::Suspect)] {
        let broker = lane_with(sent, &[ENDLESS_TASK]).await;
        for _ in 0..CLEAN_STOPS {
            let report = clean_stop(&broker).await;
            assert_eq!((report.abandoned, report.handed_back, report.errors), (1, 1, 0));
        }
        let task = take(&broker, back).await;
        let Headers { attempt, loss, .. } = task.message.headers;
        assert_eq!((task.deliveries_before, attempt, loss), (0, 0, 0), "{back:?}");
    }

    let broker = lane_with(QueueRole::Tasks, &[LARGE_TASK, ENDLESS_TASK, 3]).await;
    let report = clean_stop(&broker).await;
    assert_eq!((report.done, report.abandoned, report.handed_back), (1, 1, 1));
    let done = take(&broker, QueueRole::Results).await.message;
    assert_eq!(wire::decode::<Results<'_>>(&done).unwrap().done[0].count, 1);
    let rest = take(&broker, QueueRole::Requeued).await.message;
    let rest: Batch<'_> = wire::decode(&rest).unwrap();
    assert_eq!((rest.first, rest.tasks.get()), (TaskIndex(11), "[1,3]"), "published tasks are not run again");
}
