//! A worker whose batches take long holds no more than it can run, on the memory transport.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use gristmill_shared::{Job, JobError, JobId, QueueRole, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::support::{
    ReleaseFlag, RunningWorker, TestBatch, consume, open_lane, publish, take_results, test_worker, within,
};

const BATCH_COUNT: usize = 40;

static BEGUN_NOTIFY: Notify = Notify::const_new();
static RELEASED_FLAG: ReleaseFlag = ReleaseFlag::new();

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
        RELEASED_FLAG.wait();
        Ok(task)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Batches that the worker cannot run soon are requeued at no cost.
#[tokio::test]
async fn waiting_batches_return_to_the_queue() {
    let transport = open_lane().await;
    let job = JobId::generate();
    let batches = (0..BATCH_COUNT as u64)
        .map(|first| TestBatch { job, first, ..TestBatch::of(HeldJob::KIND) }.outgoing(&[first]));
    publish(&*transport, batches.collect()).await;
    let worker = RunningWorker::start(test_worker::<HeldJob>(2), Arc::clone(&transport) as _);
    within(BEGUN_NOTIFY.notified()).await;

    // Two batches run, and four more for each slot would wait. Only one for each slot may, and one
    // retried batch.
    let began = Instant::now();
    let mut others = Vec::new();
    let mut tasks = consume(&*transport, QueueRole::Tasks, 100).await;
    let mut again = consume(&*transport, QueueRole::Requeued, 100).await;
    while others.len() < BATCH_COUNT - 5 {
        let deliveries = tokio::select! {
            deliveries = within(tasks.recv(100)) => deliveries,
            deliveries = within(again.recv(100)) => deliveries,
        };
        others.extend(deliveries.unwrap());
    }
    assert!(began.elapsed() > Duration::from_millis(500), "they were never the worker's");
    assert!(others.iter().all(|delivery| !delivery.is_redelivered()), "it was not handed back but dropped");

    RELEASED_FLAG.release();
    drop((tasks, again)); // the worker has all the batches, which are short now
    let mut results = consume(&*transport, QueueRole::Results, 10).await;
    let mut done = Vec::new();
    while done.len() < BATCH_COUNT {
        take_results(&mut *results, 10, |results| {
            let spans = results.done.iter();
            done.extend(spans.flat_map(|span| span.first.0..span.first.0 + u64::from(span.count)));
        })
        .await;
    }
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..BATCH_COUNT as u64), "{done:?}");
    worker.stop().await;
}
