//! The prefetch of a worker follows the duration of its batches, on the memory transport.

use std::{fmt, future::Future, num::NonZeroU16, ops::ControlFlow, sync::Arc, time::Duration};

use async_trait::async_trait;
use gristmill_shared::{
    Address, Consumer, Delivery, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy, Queue,
    QueueRole, Registry, Round, TaskContext, TaskError, TaskIndex, Transport, TransportError,
    memory::MemoryTransport,
    publish_until_stored,
    testing::TransportDecorator,
    wire::{self, Batch, Results},
};
use gristmill_worker::Worker;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A job whose tasks are their durations in milliseconds.
#[derive(Serialize, Deserialize)]
struct Nap;

impl Job for Nap {
    const KIND: &'static str = "nap";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, millis: u64, cx: &TaskContext) -> Result<u64, TaskError> {
        if millis > 0 {
            cx.block_on(async { tokio::time::sleep(Duration::from_millis(millis)).await })?;
        }
        Ok(millis)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A transport that records the total prefetch of the tasks queue whenever it changes.
#[derive(Debug)]
struct PrefetchRecorder(Arc<MemoryTransport>, watch::Sender<Vec<u16>>);

#[derive(Debug)]
struct RecordedConsumer {
    consumer: Box<dyn Consumer>,
    prefetch: u16,
    recorded: watch::Sender<Vec<u16>>,
}

#[async_trait]
impl Consumer for RecordedConsumer {
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        self.consumer.recv(max).await
    }
    async fn stop(&mut self) -> Result<(), TransportError> {
        self.recorded.send_modify(|recorded| recorded.push(recorded.last().unwrap() - self.prefetch));
        self.consumer.stop().await
    }
    async fn close(self: Box<Self>) {
        self.consumer.close().await;
    }
}

#[async_trait]
impl TransportDecorator for PrefetchRecorder {
    fn inner(&self) -> &dyn Transport {
        &*self.0
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        let consumer = self.0.consume(queue, prefetch).await?;
        if queue.role != QueueRole::Tasks {
            return Ok(consumer);
        }
        self.1.send_modify(|recorded| recorded.push(recorded.last().unwrap_or(&0) + prefetch));
        Ok(Box::new(RecordedConsumer { consumer, prefetch, recorded: self.1.clone() }))
    }
}

impl fmt::Display for PrefetchRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

/// Sends this number of tasks, each alone, and waits for their outcomes.
async fn run_tasks(transport: &dyn Transport, number: u64, millis: u64) {
    let job = JobId::generate();
    let publisher = transport.publisher().await.unwrap();
    let spec = to_raw_value(&json!(null)).unwrap();
    let batch = |index: u64| {
        let message = Batch {
            job,
            kind: Kind::new("nap").unwrap(),
            spec: &spec,
            policy: Policy::default(),
            round: Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: TaskIndex(index),
            count: 1,
            tasks: &to_raw_value(&[millis]).unwrap(),
        }
        .to_message(Headers::default(), "test");
        Outgoing { to: Address::Queue(QueueRole::Tasks.of(&Lane::default())), message }
    };
    publish_until_stored(&*publisher, (0..number).map(batch).collect()).await.unwrap();
    let mut results = transport.consume(&QueueRole::Results.of(&Lane::default()), 100).await.unwrap();
    let mut done = 0;
    while done < number {
        for delivery in within(results.recv(100)).await.unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            done += results.done.iter().map(|span| u64::from(span.count)).sum::<u64>();
            delivery.receipt.ack();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetch_follows_batch_duration() {
    let broker = MemoryTransport::new();
    broker.open_lane(&Lane::default()).await.unwrap();
    let mut registry = Registry::default();
    registry.register::<Nap>().unwrap();
    let (leave, left) = oneshot::channel::<()>();
    let (recorded, mut prefetches) = watch::channel(Vec::new());
    let worker = Worker::new(registry, "test-worker".parse().unwrap())
        .slots(NonZeroU16::new(2).unwrap())
        .run_until(Arc::new(PrefetchRecorder(broker.connect(), recorded)), async {
            let _ = left.await;
        });
    let worker = tokio::spawn(worker);

    run_tasks(&*broker, 7, 0).await;
    assert_eq!(*prefetches.borrow(), [2, 8], "a few tiny batches are no load");
    let enough = async {
        // A batch whose thread got no processor time is a long one, and may cost a step back.
        while !prefetches.borrow().contains(&512) {
            run_tasks(&*broker, 900, 0).await;
        }
    };
    within(enough).await;
    let rested = |prefetches: &Vec<u16>| prefetches.last() == Some(&8);
    let all = within(prefetches.wait_for(rested)).await.unwrap().clone();
    let steps = |pair: &[u16]| pair[0] * 4 == pair[1] || pair[1] * 4 == pair[0];
    assert!(all.windows(2).all(steps) && all.iter().max() == Some(&512), "{all:?}");

    run_tasks(&*broker, 12, 300).await;
    // The worker holds as many long batches as it can run, and more short ones.
    within(prefetches.wait_for(|prefetches| prefetches[all.len()..] == [2])).await.unwrap();
    run_tasks(&*broker, 100, 0).await;
    within(prefetches.wait_for(|prefetches| prefetches[all.len()..].starts_with(&[2, 8]))).await.unwrap();
    leave.send(()).unwrap();
    within(worker).await.unwrap().unwrap();
}
