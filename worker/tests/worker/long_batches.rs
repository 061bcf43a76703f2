//! A worker whose batches take long holds no more than it can run, on the memory transport.

use std::{
    future::Future,
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use gristmill_shared::{
    Address, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy, QueueRole, Registry, Round,
    TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results},
};
use gristmill_worker::Worker;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const BATCH_COUNT: usize = 40;

static BEGUN_NOTIFY: Notify = Notify::const_new();
static RELEASED_FLAG: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn wait_for_release() {
    drop(RELEASED_FLAG.1.wait_while(RELEASED_FLAG.0.lock().unwrap(), |released| !*released).unwrap());
}

/// A job whose tasks wait until they are released.
#[derive(Serialize, Deserialize)]
struct HeldJob;

impl Job for HeldJob {
    const KIND: &'static str = "held";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        BEGUN_NOTIFY.notify_one();
        wait_for_release();
        Ok(task)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

/// Batches that the worker cannot run soon are requeued at no cost.
#[tokio::test]
async fn waiting_batches_return_to_the_queue() {
    let transport = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let job = JobId::generate();
    let batches = (0..BATCH_COUNT as u64).map(|index| {
        let message = Batch {
            job,
            kind: Kind::new("held").unwrap(),
            spec: &to_raw_value(&json!(null)).unwrap(),
            policy: Policy::default(),
            round: Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: TaskIndex(index),
            count: 1,
            tasks: &to_raw_value(&[index]).unwrap(),
        }
        .to_message(Headers::default(), "test");
        Outgoing { to: Address::Queue(QueueRole::Tasks.of(&Lane::default())), message }
    });
    publish_until_stored(&*publisher, batches.collect()).await.unwrap();

    let mut registry = Registry::default();
    registry.register::<HeldJob>().unwrap();
    let (leave, left) = oneshot::channel::<()>();
    let worker = Worker::new(registry, "test-worker".parse().unwrap())
        .slots(NonZeroU16::new(2).unwrap())
        .run_until(Arc::clone(&transport) as _, async {
            let _ = left.await;
        });
    let worker = tokio::spawn(worker);
    within(BEGUN_NOTIFY.notified()).await;

    // Two batches run, and four more for each slot would wait. Only one for each slot may, and one
    // retried batch.
    let began = Instant::now();
    let mut others = Vec::new();
    let mut tasks = transport.consume(&QueueRole::Tasks.of(&Lane::default()), 100).await.unwrap();
    let mut again = transport.consume(&QueueRole::Requeued.of(&Lane::default()), 100).await.unwrap();
    while others.len() < BATCH_COUNT - 5 {
        let deliveries = tokio::select! {
            deliveries = within(tasks.recv(100)) => deliveries,
            deliveries = within(again.recv(100)) => deliveries,
        };
        others.extend(deliveries.unwrap());
    }
    assert!(began.elapsed() > Duration::from_millis(500), "they were never the worker's");
    assert!(others.iter().all(|delivery| !delivery.is_redelivered()), "it was not handed back but dropped");

    *RELEASED_FLAG.0.lock().unwrap() = true;
    RELEASED_FLAG.1.notify_all();
    drop((tasks, again)); // the worker has all the batches, which are short now
    let mut results = transport.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();
    let mut done = Vec::new();
    while done.len() < BATCH_COUNT {
        for delivery in within(results.recv(10)).await.unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            done.extend(
                results.done.iter().flat_map(|span| span.first.0..span.first.0 + u64::from(span.count)),
            );
            delivery.receipt.ack();
        }
    }
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..BATCH_COUNT as u64), "{done:?}");
    leave.send(()).unwrap();
    within(worker).await.unwrap().unwrap();
}
