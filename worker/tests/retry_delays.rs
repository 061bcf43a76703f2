//! The delays of failed tasks before their next try, on the memory transport.
//!
//! These tests are a binary of their own, which Cargo runs alone: a paused clock goes on while a
//! slot works, and beside busy tests the slot might wait for a processor until the time limit has
//! passed.

#[expect(dead_code, reason = "the tests of the binary `worker` use the rest")]
#[path = "worker/support.rs"]
mod support;

use std::{
    fmt,
    future::Future,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use gristmill_shared::{
    Address, Headers, Job, JobError, Lane, Message, Outgoing, Policy, Published, Publisher, QueueRole,
    RetryDelay, TaskContext, TaskError, TaskIndex, Transport, TransportError,
    memory::MemoryTransport,
    testing::TransportDecorator,
    wire::{self, Results},
};
use gristmill_worker::WorkerReport;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

use support::{RunningWorker, TestBatch, open_lane, publish, test_worker, to_queue};

/// Time limit of a test: longer than all delays of a paused clock.
const TEST_TIMEOUT: Duration = Duration::from_secs(3_600);
/// A delay that takes a minute, ten seconds, and three times a second.
const TEST_DELAY: Duration = Duration::from_secs(73);

/// A job whose first tries fail: of a negative number by an error, of a positive one by asking for
/// a try that many seconds later.
#[derive(Serialize, Deserialize)]
struct Flaky {}

static TRY_COUNT: AtomicU32 = AtomicU32::new(0);

impl Job for Flaky {
    const KIND: &'static str = "flaky";
    type Task = i64;
    type Output = u32;
    type Report = ();

    fn split(&self) -> impl Iterator<Item = Result<i64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: i64, cx: &TaskContext) -> Result<u32, TaskError> {
        TRY_COUNT.fetch_add(1, Ordering::SeqCst);
        match u64::try_from(task) {
            _ if cx.attempt() > 1 => Ok(cx.attempt()),
            Ok(seconds) => Err(TaskError::retry_after(Duration::from_secs(seconds))),
            Err(_) => Err("not yet")?,
        }
    }
    fn collect(&self, (): &mut (), _: TaskIndex, _: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The memory transport, with a copy of each published message.
#[derive(Debug)]
struct PublishRecorder {
    inner: Arc<MemoryTransport>,
    published: mpsc::Sender<Outgoing>,
}

#[derive(Debug)]
struct RecordedPublisher {
    inner: Arc<dyn Publisher>,
    published: mpsc::Sender<Outgoing>,
}

#[async_trait]
impl Publisher for RecordedPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        for outgoing in &batch {
            let _ = self.published.try_send(outgoing.clone()); // the test may have ended
        }
        self.inner.publish(batch).await
    }
}

impl fmt::Display for PublishRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl TransportDecorator for PublishRecorder {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        let (inner, published) = (self.inner.publisher().await?, self.published.clone());
        Ok(Arc::new(RecordedPublisher { inner, published }))
    }
}

/// A worker with one slot, on its own transport.
struct Bench {
    published: mpsc::Receiver<Outgoing>,
    worker: RunningWorker,
}

impl Bench {
    async fn start(from: QueueRole, message: Message) -> Self {
        let inner = open_lane().await;
        publish(&*inner, vec![to_queue(from, message)]).await;
        let (sender, published) = mpsc::channel(1_000);
        let transport = Arc::new(PublishRecorder { inner, published: sender });
        Self { published, worker: RunningWorker::start(test_worker::<Flaky>(1), transport) }
    }

    /// Returns the next message that the worker publishes to this queue.
    async fn published(&mut self, role: QueueRole) -> Message {
        let queue = Address::Queue(role.of(&Lane::default()));
        within(async {
            loop {
                let outgoing = self.published.recv().await.unwrap();
                if outgoing.to == queue {
                    return outgoing.message;
                }
            }
        })
        .await
    }

    async fn stop(self) -> WorkerReport {
        let _ = self.worker.leave.send(());
        within(self.worker.running).await.unwrap().unwrap()
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

/// A batch of one task, of a job with these retry delays.
fn batch(task: i64, retry_delays: &[Duration], headers: Headers) -> Message {
    let retry_delays_ms = retry_delays.iter().map(|delay| delay.as_millis() as u64).collect();
    let policy = Policy { retry_delays_ms, ..Policy::default() };
    TestBatch { spec: json!({}), policy, headers, ..TestBatch::of(Flaky::KIND) }.message(&[task])
}

/// The delay of the policy, or of the task that asks for its own, begins on the longest step that
/// fits into it.
#[tokio::test]
async fn failed_task_waits_on_the_longest_step() {
    let minute = QueueRole::Retry(RetryDelay::Minute);
    for (task, delays, step, rest) in [
        (-1, vec![TEST_DELAY], minute, 13_000),
        (-1, vec![], QueueRole::Retry(RetryDelay::Second), 0),
        (-1, vec![Duration::from_millis(1_500)], QueueRole::Retry(RetryDelay::Second), 1_000),
        (73, vec![Duration::from_secs(1)], minute, 13_000),
        (3_600, vec![], QueueRole::Retry(RetryDelay::TenMinutes), 3_000_000),
        (i64::MAX, vec![], QueueRole::Retry(RetryDelay::TenMinutes), 85_800_000),
    ] {
        let mut bench = Bench::start(QueueRole::Tasks, batch(task, &delays, Headers::default())).await;
        let message = bench.published(step).await;
        assert_eq!((message.headers.delay_ms, message.headers.attempt), (rest, 1), "{task} {delays:?}");
        bench.stop().await;
    }
}

/// A batch whose delay is not over moves to the next step; its attempts stay, and no task of it
/// runs.
#[tokio::test]
async fn waiting_batch_moves_on_unrun() {
    let headers = Headers { attempt: 1, delay_ms: 13_500, ..Headers::default() };
    let sent = batch(1, &[], headers);
    let mut bench = Bench::start(QueueRole::Requeued, sent.clone()).await;
    let moved = bench.published(QueueRole::Retry(RetryDelay::TenSeconds)).await;
    assert_eq!((moved.headers.delay_ms, moved.headers.attempt), (3_500, 1));
    assert_eq!((moved.id, moved.body), (sent.id, sent.body));
    assert_eq!(bench.stop().await.batches, 0, "it was run");
}

/// A rest of less than the shortest step ends the delay.
#[tokio::test]
async fn batch_runs_when_its_delay_is_over() {
    let headers = Headers { attempt: 1, delay_ms: 999, ..Headers::default() };
    let mut bench = Bench::start(QueueRole::Requeued, batch(1, &[], headers)).await;
    bench.published(QueueRole::Results).await;
    assert_eq!(bench.stop().await.batches, 1);
}

/// All steps in a row, on a paused clock, which also runs while a slot works: so the time is a
/// lower bound.
#[tokio::test(start_paused = true)]
async fn delay_of_many_steps_is_kept_in_full() {
    let began = tokio::time::Instant::now();
    let before = TRY_COUNT.load(Ordering::SeqCst);
    let mut bench = Bench::start(QueueRole::Tasks, batch(73, &[], Headers::default())).await;
    let message = bench.published(QueueRole::Results).await;
    let results: Results<'_> = wire::decode(&message).unwrap();
    assert_eq!(results.done[0].outputs.get(), "[2]", "the second try's output");
    assert!(began.elapsed() >= TEST_DELAY, "{:?}", began.elapsed());
    assert!(TRY_COUNT.load(Ordering::SeqCst) >= before + 2);
    assert_eq!(bench.stop().await.batches, 2, "a step was counted as a batch");
}
