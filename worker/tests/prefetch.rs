//! The prefetch of a worker follows the duration of its batches, on the memory transport.
//!
//! This test is a binary of its own, which Cargo runs alone: tests that run beside it would take
//! its batches' processor time, and so change the durations that the prefetch follows.

#[expect(dead_code, reason = "the tests of the binary `worker` use the rest")]
#[path = "worker/support.rs"]
mod support;

use std::{fmt, ops::ControlFlow, sync::Arc, time::Duration};

use async_trait::async_trait;
use gristmill_shared::{
    Consumer, Delivery, Job, JobError, JobId, Queue, QueueRole, TaskContext, TaskError, TaskIndex, Transport,
    TransportError, memory::MemoryTransport, testing::TransportDecorator,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use support::{RunningWorker, TestBatch, consume, open_lane, publish, take_results, test_worker, within};

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

/// Sends this number of tasks, each alone, and waits for their outcomes.
async fn run_tasks(transport: &dyn Transport, number: u64, millis: u64) {
    let job = JobId::generate();
    let batch = |first| TestBatch { job, first, ..TestBatch::of(Nap::KIND) }.outgoing(&[millis]);
    publish(transport, (0..number).map(batch).collect()).await;
    let mut results = consume(transport, QueueRole::Results, 100).await;
    let mut done = 0;
    while done < number {
        take_results(&mut *results, 100, |results| {
            done += results.done.iter().map(|span| u64::from(span.count)).sum::<u64>();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetch_follows_batch_duration() {
    let broker = open_lane().await;
    let (recorded, mut prefetches) = watch::channel(Vec::new());
    let transport = Arc::new(PrefetchRecorder(broker.connect(), recorded));
    let worker = RunningWorker::start(test_worker::<Nap>(2), transport);

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
    worker.stop().await;
}
