//! A broker that blocks publishers for a while, as under a memory alarm, on the memory transport.

use std::{
    collections::BTreeSet,
    fmt,
    ops::ControlFlow,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use gristmill_shared::{
    Job, JobError, Outgoing, Published, Publisher, QueueRole, TaskContext, TaskError, TaskIndex, Transport,
    TransportError, memory::MemoryTransport, testing::TransportDecorator,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use crate::support::{
    RunningWorker, TEST_TIMEOUT, TestBatch, consume, open_lane, publish, record_results, test_worker, within,
};

const SLOT_COUNT: u16 = 4;
/// Tasks of the first batches, one batch a slot: more than may be queued or unconfirmed.
const LARGE_BATCH_TASKS: u64 = 50;
const OUTPUT_BYTES: usize = 1_000_000;
/// Outputs after which nothing moves any more: those that are queued or unconfirmed, in 32 MiB, and
/// one in each slot.
const STALLED_OUTPUTS: usize = 33 + SLOT_COUNT as usize;
/// Duration of the alarm: longer than a delivery waits for a slot before waiting ones are requeued.
const ALARM_DURATION: Duration = Duration::from_secs(3);

/// Number of outputs so far.
static OUTPUT_COUNT: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// A job with large outputs.
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
        OUTPUT_COUNT.send_modify(|outputs| *outputs += 1);
        Ok("x".repeat(OUTPUT_BYTES))
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: String) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A transport that publishes only while it is open.
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
impl TransportDecorator for Gate {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        Ok(Arc::new(GatedPublisher { inner: self.inner.publisher().await?, open: self.open.subscribe() }))
    }
}

/// A batch of `count` tasks from index `first` on.
fn batch(first: u64, count: u64) -> Outgoing {
    let tasks: Vec<u64> = (0..count).collect();
    TestBatch { first, ..TestBatch::of(Large::KIND) }.outgoing(&tasks)
}

/// Batches that are requeued while the broker blocks publishers are not lost.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_broker_loses_no_requeued_batch() {
    let broker = open_lane().await;
    let gate = Arc::new(Gate { inner: broker.connect(), open: watch::Sender::new(false) });
    let worker = RunningWorker::start(test_worker::<Large>(SLOT_COUNT), Arc::clone(&gate) as _);
    let many = u64::from(SLOT_COUNT) * LARGE_BATCH_TASKS;
    let first = (0..many).step_by(LARGE_BATCH_TASKS as usize).map(|first| batch(first, LARGE_BATCH_TASKS));
    publish(&*broker, first.collect()).await;
    within(OUTPUT_COUNT.subscribe().wait_for(|outputs| *outputs >= STALLED_OUTPUTS)).await.unwrap();
    // One more batch than slots: the last one waits for room in the run queue.
    let all = many + u64::from(SLOT_COUNT) + 1;
    publish(&*broker, (many..all).map(|first| batch(first, 1)).collect()).await;
    tokio::time::sleep(ALARM_DURATION).await; // a worker that may not publish shows no effect
    gate.open.send_replace(true);

    let mut results = consume(&*broker, QueueRole::Results, 10).await;
    let mut missing: BTreeSet<u64> = (0..all).collect();
    while !missing.is_empty() {
        let deliveries = timeout(TEST_TIMEOUT / 3, results.recv(10)).await;
        let deliveries = deliveries.unwrap_or_else(|_| panic!("no more results; missing: {missing:?}"));
        record_results(deliveries.unwrap(), |results| {
            for span in results.done {
                for place in 0..u64::from(span.count) {
                    assert!(missing.remove(&(span.first.0 + place)), "it was run twice");
                }
            }
        });
    }
    let report = worker.stop().await;
    assert!(report.handed_back > 0, "nothing was handed back, so this test shows nothing: {report}");
}
