//! A broker that takes nothing for a while, as under a memory alarm, on the memory transport.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use gristmill_shared::{
    Address, Capabilities, Consumer, EventFilter, EventReader, Headers, Health, Job, JobError, JobId,
    JournalReader, Kind, Lane, Outgoing, Policy, Published, Publisher, Queue, QueueRole, Registry, Round,
    Shards, TaskContext, TaskError, TaskIndex, Transport, TransportError,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results},
};
use gristmill_worker::Worker;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(60);
const SLOTS: u16 = 4;
/// What the slots run first: more than may be on its way to the broker.
const LARGE_TASKS: u64 = 50;
const OUTPUT_BYTES: usize = 1_000_000;
/// So many outputs are on their way or wait for their turn, in 32 MiB, and are in the hands of slots when nothing moves any more.
const UNTIL_ALL_WAIT: usize = 33 + SLOTS as usize;
/// Longer than a delivery waits for a slot before those that wait are handed back.
const ALARM: Duration = Duration::from_secs(3);

/// Outputs so far.
static OUTPUTS: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Its outputs are large.
#[derive(Serialize, Deserialize)]
struct Large;

impl Job for Large {
    const KIND: &'static str = "large";
    type Task = u64;
    type Output = String;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, _: u64, _: &TaskContext) -> Result<String, TaskError> {
        OUTPUTS.send_modify(|outputs| *outputs += 1);
        Ok("x".repeat(OUTPUT_BYTES))
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: String) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Lets publishes through while it is open.
#[derive(Debug)]
struct Gate {
    inner: Arc<MemoryTransport>,
    open: watch::Sender<bool>,
}

#[derive(Debug)]
struct GatedPublisher {
    inner: Arc<dyn Publisher>,
    open: watch::Receiver<bool>,
}

#[async_trait]
impl Publisher for GatedPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        self.open.clone().wait_for(|open| *open).await.unwrap();
        self.inner.publish(batch).await
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl Transport for Gate {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.inner.open_lane(lane).await
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.inner.open_shards(lane, at_least).await
    }
    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        Ok(Arc::new(GatedPublisher { inner: self.inner.publisher().await?, open: self.open.subscribe() }))
    }
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        self.inner.consume(queue, prefetch).await
    }
    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.inner.journal().await
    }
    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.inner.events(filter).await
    }
    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

/// `count` tasks from index `first` on.
fn batch(first: u64, count: u64) -> Outgoing {
    let message = Batch {
        job: JobId::generate(),
        kind: Kind::new("large").unwrap(),
        spec: &to_raw_value(&json!(null)).unwrap(),
        policy: Policy::default(),
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(first),
        count: u32::try_from(count).unwrap(),
        tasks: &to_raw_value(&(0..count).collect::<Vec<_>>()).unwrap(),
    }
    .to_message(Headers::default(), "test");
    Outgoing { to: Address::Queue(QueueRole::Tasks.of(&Lane::default())), message }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_back_while_the_broker_blocks_is_not_forgotten() {
    let broker = MemoryTransport::new();
    broker.open_lane(&Lane::default()).await.unwrap();
    let gate = Arc::new(Gate { inner: broker.connect(), open: watch::Sender::new(false) });
    let mut registry = Registry::default();
    registry.register::<Large>().unwrap();
    let (leave, left) = oneshot::channel::<()>();
    let worker = Worker::new(registry, "test-worker".parse().unwrap())
        .slots(NonZeroU16::new(SLOTS).unwrap())
        .run_until(Arc::clone(&gate) as _, async {
            let _ = left.await;
        });
    let worker = tokio::spawn(worker);
    let publisher = broker.publisher().await.unwrap();
    let many = u64::from(SLOTS) * LARGE_TASKS;
    let first = (0..many).step_by(LARGE_TASKS as usize).map(|first| batch(first, LARGE_TASKS));
    publish_until_stored(&*publisher, first.collect()).await.unwrap();
    within(OUTPUTS.subscribe().wait_for(|outputs| *outputs >= UNTIL_ALL_WAIT)).await.unwrap();
    // As many wait for a slot, and one waits for room there.
    let all = many + u64::from(SLOTS) + 1;
    publish_until_stored(&*publisher, (many..all).map(|first| batch(first, 1)).collect()).await.unwrap();
    tokio::time::sleep(ALARM).await; // nothing can be seen of a worker that may not publish
    gate.open.send_replace(true);

    let mut results = broker.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();
    let mut missing: BTreeSet<u64> = (0..all).collect();
    while !missing.is_empty() {
        let deliveries = timeout(PATIENCE / 3, results.recv(10)).await;
        let deliveries = deliveries.unwrap_or_else(|_| panic!("no more results; missing: {missing:?}"));
        for delivery in deliveries.unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            for span in results.done {
                for place in 0..u64::from(span.count) {
                    assert!(missing.remove(&(span.first.0 + place)), "it was run twice");
                }
            }
            delivery.receipt.ack();
        }
    }
    leave.send(()).unwrap();
    let report = within(worker).await.unwrap().unwrap();
    assert!(report.handed_back > 0, "nothing was handed back, so this test shows nothing: {report}");
}
