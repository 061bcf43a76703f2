//! Batch sizes follow task durations: the whole pipeline runs on the memory transport, and a
//! wrapper records the batches that the producer publishes.

use std::{
    fmt,
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use gristmill_ledger::LedgerLocation;
use gristmill_producer::{JobUpdate, JobWatcher, Producer, SubmitOptions};
use gristmill_shared::{
    Address, Job, JobError, Lane, Outgoing, Plan, Published, Publisher, QueueRole, Registry, TaskContext,
    TaskError, TaskIndex, Transport, TransportError, WorkerId, erase,
    memory::MemoryTransport,
    testing::TransportDecorator,
    wire::{Batch, Progress, decode},
};
use gristmill_sink::{Sink, SinkConfig};
use gristmill_worker::Worker;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::harness::within;

/// A job of tasks that sleep: they take time and no processor.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Naps {
    tasks: u64,
    millis: u64,
}

impl Job for Naps {
    const KIND: &'static str = "naps";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::of(self.tasks))
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..self.tasks).map(Ok)
    }
    fn process(&self, task: u64, cx: &TaskContext) -> Result<u64, TaskError> {
        if self.millis > 0 {
            cx.block_on(async { tokio::time::sleep(Duration::from_millis(self.millis)).await })?;
        }
        Ok(task)
    }
    fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
        *report += output;
        ControlFlow::Continue(())
    }
}

/// The sizes of all batches, in the order in which they were sent.
type BatchSizes = Arc<Mutex<Vec<u64>>>;

/// A transport that records the sizes of the batches that are published to it.
#[derive(Debug)]
struct BatchSizeRecorder(Arc<MemoryTransport>, BatchSizes);

#[async_trait]
impl TransportDecorator for BatchSizeRecorder {
    fn inner(&self) -> &dyn Transport {
        &*self.0
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        Ok(Arc::new(BatchSizePublisher(self.0.publisher().await?, Arc::clone(&self.1))))
    }
}

impl fmt::Display for BatchSizeRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug)]
struct BatchSizePublisher(Arc<dyn Publisher>, BatchSizes);

#[async_trait]
impl Publisher for BatchSizePublisher {
    async fn publish(&self, messages: Vec<Outgoing>) -> Vec<Published> {
        for Outgoing { to, message } in &messages {
            if *to == Address::Queue(QueueRole::Tasks.of(&Lane::default())) {
                self.1.lock().unwrap().push(decode::<Batch<'_>>(message).unwrap().count.into());
            }
        }
        self.0.publish(messages).await
    }
}

/// The result of a run: batch sizes, progress events and duration.
#[derive(Debug)]
struct JobRun {
    sizes: Vec<u64>,
    progress: Vec<Progress>,
    took: Duration,
}

/// Runs a job on a sink and workers of two slots each.
async fn run(job: Naps, batch: Option<u32>, workers: usize) -> JobRun {
    let broker = MemoryTransport::new();
    let mut registry = Registry::default();
    registry.register::<Naps>().unwrap();
    let (ended, tasks) = (CancellationToken::new(), job.tasks);
    let config = SinkConfig::new(registry.clone(), Lane::default(), "sink".parse().unwrap());
    let sink = Sink::open(config, gristmill::open_ledger(LedgerLocation::Memory).unwrap());
    let sinking = async { sink.unwrap().run_until(broker.connect(), ended.cancelled()).await.unwrap() };
    let working = futures::future::join_all((0..workers).map(|number| {
        let id = WorkerId::generate(&format!("worker-{number}"));
        let worker = Worker::new(registry.clone(), id).slots(NonZeroU16::new(2).unwrap());
        let (transport, ended) = (broker.connect(), &ended);
        async move { worker.run_until(transport, ended.cancelled()).await.unwrap() }
    }));
    let sizes = BatchSizes::default();
    let submitting = async {
        let transport: Arc<dyn Transport> = Arc::new(BatchSizeRecorder(broker.connect(), Arc::clone(&sizes)));
        let producer = Producer::new(Arc::clone(&transport), "test");
        let options = SubmitOptions { batch, ..SubmitOptions::default() };
        let submission = producer.open(erase(job), options).await.unwrap();
        let mut watch = JobWatcher::open(&*transport, submission.id()).await.unwrap();
        let began = Instant::now();
        let watching = async {
            let mut progress = Vec::new();
            loop {
                match watch.next().await.unwrap() {
                    JobUpdate::Progress(further) => progress.push(further),
                    JobUpdate::Finished(finished) => return (progress, finished),
                    _ => {}
                }
            }
        };
        let (sent, (progress, finished)) = futures::join!(submission.send(), watching);
        sent.unwrap();
        assert_eq!(finished.conclusion.text, (tasks * (tasks - 1) / 2).to_string());
        assert_eq!(finished.account.done, tasks);
        let took = began.elapsed();
        ended.cancel();
        JobRun { sizes: sizes.lock().unwrap().clone(), progress, took }
    };
    within("the job", async { futures::join!(sinking, working, submitting).2 }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn long_tasks_never_share_a_batch() {
    let end = run(Naps { tasks: 60, millis: 60 }, None, 2).await;
    assert_eq!(end.sizes, [1; 60], "{:?}", end.took);
}

/// Batches of tiny tasks grow to thousands of tasks, and at most double each time.
#[tokio::test(flavor = "multi_thread")]
async fn tiny_tasks_fill_large_batches() {
    let tasks = 2_000_000;
    let JobRun { sizes, took, .. } = run(Naps { tasks, millis: 0 }, None, 1).await;
    assert_eq!(sizes.iter().sum::<u64>(), tasks);
    assert!(sizes.iter().max() >= Some(&2_000), "{took:?}: {sizes:?}");
    assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] * 2), "{took:?}: {sizes:?}");
    // Most batches are large: the slow start and the end take a small part of all messages and
    // tasks.
    let small: u64 = sizes.iter().filter(|size| **size < 500).sum();
    println!("{} batches in {took:?}, {small} tasks in small ones", sizes.len());
    assert!(small < tasks / 20 && sizes.len() < 4_000, "{small} tasks in small ones: {took:?}: {sizes:?}");
}

/// Batches take at most about 100 ms, and the last ones are small.
#[tokio::test(flavor = "multi_thread")]
async fn batches_shrink_toward_the_end() {
    let tasks = 6_000;
    let JobRun { sizes, progress, took } = run(Naps { tasks, millis: 1 }, None, 2).await;
    let largest = sizes.iter().max().unwrap();
    let micros = progress.last().unwrap().busy_us / tasks; // a nap of a millisecond takes two or so
    assert!(largest * micros >= 15_000, "{micros} us each, {took:?}: {sizes:?}");
    // Tasks may have become slower after a batch was packed, but no batch is larger than the
    // fastest measured tasks allow.
    let seen = progress.iter().map(|progress| (progress.account.done, progress.busy_us));
    let spans = seen
        .clone()
        .zip(std::iter::once((0, 0)).chain(seen))
        .map(|(to, from)| (to.0 - from.0, to.1 - from.1));
    let means = spans.filter(|(tasks, _)| *tasks > 0).map(|(tasks, micros)| micros / tasks);
    let fastest = means.min().unwrap();
    assert!(largest * fastest <= 100_000, "{fastest} us each at best, {took:?}: {sizes:?}");
    // Four slots share the rest, so the last batches are small, and no slot has much to do when the
    // others are done.
    let (mut left, ten_ms) = (tasks, (10_000 / fastest).max(1));
    for size in &sizes {
        assert!(*size <= (left / 8).max(ten_ms), "{size} of {left}, {fastest} us each at best: {sizes:?}");
        left -= size;
    }
    assert!(sizes.last() <= Some(&ten_ms), "{fastest} us each at best: {sizes:?}");
}

/// A batch of four seconds reports its progress at least once a second.
#[tokio::test(flavor = "multi_thread")]
async fn long_batch_reports_each_second() {
    let JobRun { sizes, progress, took, .. } = run(Naps { tasks: 200, millis: 40 }, Some(100), 1).await;
    assert_eq!(sizes, [100, 100], "a number that is asked for is kept to");
    let mut seen: Vec<_> = progress.iter().map(|progress| progress.account.done).collect();
    seen.dedup();
    assert!(took >= Duration::from_secs(4), "{took:?}");
    assert!(seen.len() as u64 >= took.as_secs(), "{seen:?} in {took:?}");
}
