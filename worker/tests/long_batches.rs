//! A worker whose tasks take long holds no more than it can run.

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

const PATIENCE: Duration = Duration::from_secs(60);
const BATCHES: usize = 40;

static BEGUN: Notify = Notify::const_new();
static RELEASED: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn until_released() {
    drop(RELEASED.1.wait_while(RELEASED.0.lock().unwrap(), |released| !*released).unwrap());
}

/// Its tasks wait until they are released.
#[derive(Serialize, Deserialize)]
struct Held;

impl Job for Held {
    const KIND: &'static str = "held";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        BEGUN.notify_one();
        until_released();
        Ok(task)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

#[tokio::test]
async fn what_a_worker_cannot_run_soon_is_left_to_others_at_no_cost() {
    let transport = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let job = JobId::generate();
    let batches = (0..BATCHES as u64).map(|index| {
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
    registry.register::<Held>().unwrap();
    let (leave, left) = oneshot::channel::<()>();
    let worker = Worker::new(registry, "test-worker".parse().unwrap())
        .slots(NonZeroU16::new(2).unwrap())
        .run_until(Arc::clone(&transport) as _, async {
            let _ = left.await;
        });
    let worker = tokio::spawn(worker);
    within(BEGUN.notified()).await;

    // Two run and four more for each slot would wait; but only one for each slot, and one of those that come again, may.
    let began = Instant::now();
    let mut others = Vec::new();
    let mut tasks = transport.consume(&QueueRole::Tasks.of(&Lane::default()), 100).await.unwrap();
    let mut again = transport.consume(&QueueRole::Again.of(&Lane::default()), 100).await.unwrap();
    while others.len() < BATCHES - 5 {
        let deliveries = tokio::select! {
            deliveries = within(tasks.recv(100)) => deliveries,
            deliveries = within(again.recv(100)) => deliveries,
        };
        others.extend(deliveries.unwrap());
    }
    assert!(began.elapsed() > Duration::from_millis(500), "they were never the worker's");
    assert!(others.iter().all(|delivery| !delivery.redelivered()), "it was not handed back but dropped");

    *RELEASED.0.lock().unwrap() = true;
    RELEASED.1.notify_all();
    drop((tasks, again)); // the others leave, and the worker has all to itself, in short order
    let mut results = transport.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();
    let mut done = Vec::new();
    while done.len() < BATCHES {
        for delivery in within(results.recv(10)).await.unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            done.extend(
                results.done.iter().flat_map(|span| span.first.0..span.first.0 + u64::from(span.count)),
            );
            delivery.receipt.ack();
        }
    }
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..BATCHES as u64), "{done:?}");
    leave.send(()).unwrap();
    within(worker).await.unwrap().unwrap();
}
