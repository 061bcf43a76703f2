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

const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_millis(50);
const FOR_EVER: u64 = 1;
/// Its output is handed on at once, since it is large.
const LARGE: u64 = 2;
const CLEAN_STOPS: usize = 5;

/// Some of its tasks do not end.
#[derive(Serialize, Deserialize)]
struct Endless;

static BEGUN: Notify = Notify::const_new();

impl Job for Endless {
    const KIND: &'static str = "endless";
    type Task = u64;
    type Output = String;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<String, TaskError> {
        match task {
            FOR_EVER => {
                BEGUN.notify_one();
                loop {
                    std::thread::park();
                }
            }
            LARGE => Ok("x".repeat(500_000)),
            _ => Ok(String::new()),
        }
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: String) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it takes too long")
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

/// A worker that is told to leave once it is in a task that does not end, and leaves in order.
async fn clean_stop(broker: &Arc<MemoryTransport>) -> WorkerReport {
    let mut registry = Registry::default();
    registry.register::<Endless>().unwrap();
    let connection = broker.connect();
    let (leave, left) = oneshot::channel::<()>();
    let worker = Worker::new(registry, "test-worker".parse().unwrap())
        .slots(NonZeroU16::MIN)
        .grace(GRACE)
        .run_until(Arc::clone(&connection) as _, async {
            let _ = left.await;
        });
    let worker = tokio::spawn(worker);
    within(BEGUN.notified()).await;
    leave.send(()).unwrap();
    let report = within(worker).await.unwrap().unwrap();
    connection.close().await;
    report
}

async fn take(broker: &MemoryTransport, role: QueueRole) -> Delivery {
    let mut consumer = broker.consume(&role.of(&Lane::default()), 1).await.unwrap();
    timeout(Duration::from_secs(5), consumer.recv(1)).await.expect("it is not there").unwrap().remove(0)
}

/// One test, since the tasks of both have one bell.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_within_the_grace_is_handed_back_at_no_cost() {
    for (sent, back) in [(QueueRole::Tasks, QueueRole::Again), (QueueRole::Suspect, QueueRole::Suspect)] {
        let broker = lane_with(sent, &[FOR_EVER]).await;
        for _ in 0..CLEAN_STOPS {
            let report = clean_stop(&broker).await;
            assert_eq!((report.abandoned, report.handed_back, report.errors), (1, 1, 0));
        }
        let task = take(&broker, back).await;
        let Headers { attempt, loss, .. } = task.message.headers;
        assert_eq!((task.deliveries_before, attempt, loss), (0, 0, 0), "{back:?}");
    }

    let broker = lane_with(QueueRole::Tasks, &[LARGE, FOR_EVER, 3]).await;
    let report = clean_stop(&broker).await;
    assert_eq!((report.done, report.abandoned, report.handed_back), (1, 1, 1));
    let done = take(&broker, QueueRole::Results).await.message;
    assert_eq!(wire::decode::<Results<'_>>(&done).unwrap().done[0].count, 1);
    let rest = take(&broker, QueueRole::Again).await.message;
    let rest: Batch<'_> = wire::decode(&rest).unwrap();
    assert_eq!(
        (rest.first, rest.tasks.get()),
        (TaskIndex(11), "[1,3]"),
        "what was handed on is not run again"
    );
}
