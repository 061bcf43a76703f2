//! Tasks that do not end while their worker leaves, on the memory transport.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use gristmill_shared::{
    Delivery, Headers, Job, JobError, QueueRole, TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    wire::{self, Batch, Results},
};
use gristmill_worker::WorkerReport;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::timeout};

use crate::support::{RunningWorker, TestBatch, consume, open_lane, publish, test_worker, to_queue, within};

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

async fn lane_with(role: QueueRole, tasks: &[u64]) -> Arc<MemoryTransport> {
    let broker = open_lane().await;
    let message = TestBatch::of(EndlessTasks::KIND).message(tasks);
    publish(&*broker, vec![to_queue(role, message)]).await;
    broker
}

/// Stops a worker that runs a task without an end, and waits until it has left in order.
async fn clean_stop(broker: &Arc<MemoryTransport>) -> WorkerReport {
    let connection = broker.connect();
    let worker = test_worker::<EndlessTasks>(1).grace(TEST_GRACE);
    let worker = RunningWorker::start(worker, Arc::clone(&connection) as _);
    within(BEGUN_NOTIFY.notified()).await;
    let report = worker.stop().await;
    connection.close().await;
    report
}

async fn take_unsettled(broker: &MemoryTransport, role: QueueRole) -> Delivery {
    let mut consumer = consume(broker, role, 1).await;
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
        let task = take_unsettled(&broker, back).await;
        let Headers { attempt, loss, .. } = task.message.headers;
        assert_eq!((task.deliveries_before, attempt, loss), (0, 0, 0), "{back:?}");
    }

    let broker = lane_with(QueueRole::Tasks, &[LARGE_TASK, ENDLESS_TASK, 3]).await;
    let report = clean_stop(&broker).await;
    assert_eq!((report.done, report.abandoned, report.handed_back), (1, 1, 1));
    let done = take_unsettled(&broker, QueueRole::Results).await.message;
    assert_eq!(wire::decode::<Results<'_>>(&done).unwrap().done[0].count, 1);
    let rest = take_unsettled(&broker, QueueRole::Requeued).await.message;
    let rest: Batch<'_> = wire::decode(&rest).unwrap();
    assert_eq!((rest.first, rest.tasks.get()), (TaskIndex(11), "[1,3]"), "published tasks are not run again");
}
