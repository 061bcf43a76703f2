//! Common parts of the tests: batches, queues of the default lane, and a worker that runs until it
//! is told to leave.

use std::{
    future::Future,
    num::NonZeroU16,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use gristmill_shared::{
    Address, Consumer, Delivery, Headers, Job, JobId, Kind, Lane, Message, Outgoing, Policy, QueueRole,
    Registry, Round, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results, Stopped, WireMessage as _},
};
use gristmill_worker::{Worker, WorkerError, WorkerReport};
use serde::Serialize;
use serde_json::value::to_raw_value;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

/// Time limit of each wait of a test.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

/// A flag for which tasks hold their threads. Each module has flags of its own, since the tests of
/// all modules share a process.
pub(crate) struct ReleaseFlag(Mutex<bool>, Condvar);

impl ReleaseFlag {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(false), Condvar::new())
    }

    /// Blocks the thread until the flag is set.
    pub(crate) fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |released| !*released).unwrap());
    }

    pub(crate) fn release(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// The parts of a batch in which tests differ, without its tasks.
pub(crate) struct TestBatch {
    pub(crate) job: JobId,
    pub(crate) kind: &'static str,
    pub(crate) spec: serde_json::Value,
    pub(crate) policy: Policy,
    /// The index of the first task.
    pub(crate) first: u64,
    pub(crate) headers: Headers,
}

impl TestBatch {
    /// A batch of a new job with the spec `null`, from index 10 on.
    pub(crate) fn of(kind: &'static str) -> Self {
        Self {
            job: JobId::generate(),
            kind,
            spec: serde_json::Value::Null,
            policy: Policy::default(),
            first: 10,
            headers: Headers::default(),
        }
    }

    pub(crate) fn message(self, tasks: &[impl Serialize]) -> Message {
        Batch {
            job: self.job,
            kind: Kind::new(self.kind).unwrap(),
            spec: &to_raw_value(&self.spec).unwrap(),
            policy: self.policy,
            round: Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: TaskIndex(self.first),
            count: u32::try_from(tasks.len()).unwrap(),
            tasks: &to_raw_value(tasks).unwrap(),
        }
        .to_message(self.headers, "test")
    }

    /// Returns the batch with these tasks, addressed to the tasks queue.
    pub(crate) fn outgoing(self, tasks: &[impl Serialize]) -> Outgoing {
        to_queue(QueueRole::Tasks, self.message(tasks))
    }
}

pub(crate) fn to_queue(role: QueueRole, message: Message) -> Outgoing {
    Outgoing { to: Address::Queue(role.of(&Lane::default())), message }
}

/// Returns the entry of the journal that ends a job.
pub(crate) fn stopped(job: JobId) -> Outgoing {
    let stopped = Stopped { job, round: Round(0), reason: "test".into() };
    Outgoing { to: Address::Journal, message: stopped.message(format!("{job}/stopped"), "test") }
}

/// Opens the default lane on a broker of its own.
pub(crate) async fn open_lane() -> Arc<MemoryTransport> {
    let transport = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    transport
}

pub(crate) async fn publish(transport: &dyn Transport, messages: Vec<Outgoing>) {
    let publisher = transport.publisher().await.unwrap();
    publish_until_stored(&*publisher, messages).await.unwrap();
}

pub(crate) async fn consume(transport: &dyn Transport, role: QueueRole, prefetch: u16) -> Box<dyn Consumer> {
    transport.consume(&role.of(&Lane::default()), prefetch).await.unwrap()
}

/// Takes one message of a queue, and settles it.
pub(crate) async fn take(transport: &dyn Transport, role: QueueRole) -> Message {
    let mut consumer = consume(transport, role, 1).await;
    let delivery = within(consumer.recv(1)).await.unwrap().remove(0);
    delivery.receipt.ack();
    consumer.close().await;
    delivery.message
}

/// Takes one message of the results queue, as JSON.
pub(crate) async fn take_json_results(transport: &dyn Transport) -> serde_json::Value {
    let message = take(transport, QueueRole::Results).await;
    wire::decode::<Results<'_>>(&message).unwrap();
    serde_json::from_slice(&message.body).unwrap()
}

/// Waits for at least one message of results, and records and settles at most `max`.
pub(crate) async fn take_results(
    consumer: &mut dyn Consumer,
    max: usize,
    record: impl FnMut(Results<'_>) + Send,
) {
    record_results(within(consumer.recv(max)).await.unwrap(), record);
}

/// Records results, and settles their messages.
pub(crate) fn record_results(deliveries: Vec<Delivery>, mut record: impl FnMut(Results<'_>)) {
    for delivery in deliveries {
        record(wire::decode(&delivery.message).unwrap());
        delivery.receipt.ack();
    }
}

/// True if no message of a queue comes for a while.
pub(crate) async fn is_empty(transport: &dyn Transport, role: QueueRole) -> bool {
    let mut consumer = consume(transport, role, 1).await;
    timeout(Duration::from_millis(50), consumer.recv(1)).await.is_err()
}

/// A worker that knows one kind of jobs.
pub(crate) fn test_worker<J: Job>(slots: u16) -> Worker {
    let mut registry = Registry::default();
    registry.register::<J>().unwrap();
    Worker::new(registry, "test-worker".parse().unwrap()).slots(NonZeroU16::new(slots).unwrap())
}

/// A worker that runs until it is told to leave, or until this is dropped.
pub(crate) struct RunningWorker {
    pub(crate) leave: oneshot::Sender<()>,
    pub(crate) running: JoinHandle<Result<WorkerReport, WorkerError>>,
}

impl RunningWorker {
    pub(crate) fn start(worker: Worker, transport: Arc<dyn Transport>) -> Self {
        let (leave, left) = oneshot::channel::<()>();
        let running = worker.run_until(transport, async {
            let _ = left.await;
        });
        Self { leave, running: tokio::spawn(running) }
    }

    /// Waits until the worker has ended.
    pub(crate) async fn ended(&mut self) -> Result<WorkerReport, WorkerError> {
        within(&mut self.running).await.unwrap()
    }

    /// Makes the worker leave, and waits until it has left in order.
    pub(crate) async fn stop(self) -> WorkerReport {
        let told = self.leave.send(());
        let report = within(self.running).await.unwrap().unwrap();
        told.expect("it ended before it was told to leave");
        report
    }
}
