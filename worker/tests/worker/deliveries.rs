//! The handling of deliveries by a worker, on the memory transport.

use std::{
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use gristmill_shared::{
    Address, Delivery, Headers, Job, JobError, JobId, Lane, Message, Outgoing, QueueRole, Registry, Shards,
    TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    wire::{self, Batch, Results, WireMessage as _},
};
use gristmill_worker::{Worker, WorkerReport};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    RunningWorker, TestBatch, consume, is_empty, open_lane, publish, stopped, take, take_json_results,
    to_queue, within,
};

/// A job that doubles numbers; some of its tasks fail or panic.
#[derive(Serialize, Deserialize)]
struct Double {
    #[serde(default)]
    hold: bool,
}

/// The barrier at which held tasks meet the test when they begin.
static TASK_BEGUN: std::sync::LazyLock<Barrier> = std::sync::LazyLock::new(|| Barrier::new(2));
/// The barrier at which held tasks meet the test before they end.
static TASK_END: std::sync::LazyLock<Barrier> = std::sync::LazyLock::new(|| Barrier::new(2));
/// Number of held tasks that have begun.
static HELD_COUNT: AtomicUsize = AtomicUsize::new(0);

impl Job for Double {
    const KIND: &'static str = "double";
    type Task = i64;
    type Output = i64;
    type Report = i64;

    fn split(&self) -> impl Iterator<Item = Result<i64, JobError>> + Send {
        std::iter::empty()
    }
    #[expect(clippy::panic_in_result_fn, reason = "one of the ways to behave badly")]
    fn process(&self, task: i64, _: &TaskContext) -> Result<i64, TaskError> {
        if self.hold {
            HELD_COUNT.fetch_add(1, Ordering::SeqCst);
            TASK_BEGUN.wait();
            TASK_END.wait();
        }
        match task {
            -1 => Err(TaskError::failed("minus one")),
            -2 => Err(TaskError::reject("minus two")),
            -3 => panic!("minus three"),
            _ => Ok(task * 2),
        }
    }
    fn collect(&self, _: &mut i64, _: TaskIndex, _: i64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A worker on its own transport.
struct Bench {
    transport: Arc<MemoryTransport>,
    worker: RunningWorker,
}

impl Bench {
    async fn start(messages: Vec<Outgoing>) -> Self {
        Self::start_on(open_lane().await, Shards::ONE, messages).await
    }

    async fn start_on(transport: Arc<MemoryTransport>, shards: Shards, messages: Vec<Outgoing>) -> Self {
        publish(&*transport, messages).await;
        let mut registry = Registry::default();
        registry.register::<Double>().unwrap();
        registry.register::<Fragile>().unwrap();
        let worker =
            Worker::new(registry, "test-worker".parse().unwrap()).slots(NonZeroU16::MIN).shards(shards);
        Self { worker: RunningWorker::start(worker, Arc::clone(&transport) as _), transport }
    }

    async fn stop(self) -> (WorkerReport, Arc<MemoryTransport>) {
        (self.worker.stop().await, self.transport)
    }

    async fn take(&self, role: QueueRole) -> Message {
        take(&*self.transport, role).await
    }

    async fn results(&self) -> serde_json::Value {
        take_json_results(&*self.transport).await
    }

    /// Takes the results of this number of tasks, in one message or, on a slow machine, several.
    async fn results_of(&self, tasks: u64) -> serde_json::Value {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let spans = |done: &[serde_json::Value]| -> u64 {
            done.iter().map(|span: &serde_json::Value| span["count"].as_u64().unwrap()).sum()
        };
        while spans(&done) + (failed.len() as u64) < tasks {
            let results = self.results().await;
            done.extend(results["done"].as_array().unwrap().iter().cloned());
            failed.extend(results["failed"].as_array().into_iter().flatten().cloned());
        }
        json!({"done": done, "failed": failed})
    }
}

/// Takes all messages of a queue, unsettled.
async fn drain(transport: &dyn Transport, role: QueueRole) -> Vec<Delivery> {
    let mut consumer = consume(transport, role, 100).await;
    let mut all = Vec::new();
    while let Ok(deliveries) = timeout(Duration::from_millis(50), consumer.recv(100)).await {
        all.extend(deliveries.unwrap());
    }
    all
}

fn batch(job: JobId, kind: &'static str, spec: &serde_json::Value, tasks: &[i64], failures: u32) -> Outgoing {
    let headers = Headers { attempt: failures, ..Headers::default() };
    TestBatch { job, spec: spec.clone(), headers, ..TestBatch::of(kind) }.outgoing(tasks)
}

#[tokio::test]
async fn batch_is_settled_after_its_outcomes() {
    let bench = Bench::start(vec![batch(JobId::generate(), "double", &json!({}), &[1, 2, 3], 0)]).await;
    let results = bench.results().await;
    assert_eq!(results["done"], json!([{"first": 10, "count": 3, "outputs": [2, 4, 6]}]));
    let (report, transport) = bench.stop().await;
    assert_eq!((report.done, report.batches), (3, 1));
    assert!(is_empty(&*transport, QueueRole::Tasks).await, "the batch was not acked");
}

/// A worker takes from all shards that exist, also from those that others made.
#[tokio::test]
async fn worker_takes_from_all_shards() {
    let [two, three] = [2, 3].map(|number| Shards::new(number).unwrap());
    let (transport, lane) = (open_lane().await, Lane::default());
    transport.open_shards(&lane, two).await.unwrap();
    for (wanted, there) in [(Shards::ONE, two), (three, three), (two, three)] {
        let job = JobId::generate();
        let to_shard =
            |shard| Outgoing { to: Address::Queue(shard), ..batch(job, "double", &json!({}), &[1], 0) };
        let bench = Bench::start_on(Arc::clone(&transport), wanted, Vec::new()).await;
        let is_there = async || transport.open_shards(&lane, Shards::ONE).await.unwrap() == there;
        within(async {
            while !is_there().await {
                tokio::task::yield_now().await;
            }
        })
        .await;
        publish(&*transport, there.queues().map(|shard| to_shard(shard.of(&lane))).collect()).await;
        bench.results_of(there.get().into()).await;
        let (report, _) = bench.stop().await;
        assert_eq!(report.batches, u64::from(there.get()));
    }
}

#[tokio::test]
async fn failed_task_is_retried_alone() {
    let bench = Bench::start(vec![batch(JobId::generate(), "double", &json!({}), &[1, -1, -3, 4], 0)]).await;
    let results = bench.results_of(2).await;
    assert_eq!(
        results["done"],
        json!([{"first": 10, "count": 1, "outputs": [2]}, {"first": 13, "count": 1, "outputs": [8]}])
    );
    let (_, transport) = bench.stop().await;
    for (index, task) in [(11, "[-1]"), (12, "[-3]")] {
        let message = take(&*transport, QueueRole::Requeued).await;
        let batch = wire::decode::<Batch<'_>>(&message).unwrap();
        assert_eq!((batch.first, batch.count, batch.tasks.get()), (TaskIndex(index), 1, task));
        assert_eq!(message.headers.attempt, 1);
    }
}

/// The last attempt, a rejection and a panic are recorded with their tasks.
#[tokio::test]
async fn final_failures_keep_their_tasks() {
    let bench = Bench::start(vec![batch(JobId::generate(), "double", &json!({}), &[-1, -2, -3], 4)]).await;
    let failed = bench.results_of(3).await["failed"].clone();
    for (place, task, reason) in [(0, -1, "minus one"), (1, -2, "minus two"), (2, -3, "panic: minus three")] {
        let expected =
            json!({"index": 10 + place, "reason": reason, "attempts": 5, "losses": 0, "task": task});
        assert_eq!(failed[place], expected);
    }
    bench.stop().await;
}

/// Outcomes belong to the trace of their batch, whether or not its headers carry one.
#[tokio::test]
async fn outcomes_belong_to_the_batch_trace() {
    let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = |job, header: Option<&str>| {
        let mut traced = batch(job, "double", &json!({}), &[-1, 1], 0);
        assert!(traced.message.headers.traceparent.is_some(), "a batch begins a trace by itself");
        traced.message.headers.traceparent = header.map(Into::into);
        traced
    };
    let silent = JobId::generate();
    let bench = Bench::start(vec![traced(JobId::generate(), Some(theirs)), traced(silent, None)]).await;
    let results = bench.take(QueueRole::Results).await;
    let (trace, run) = (results.headers.trace_id(), results.headers.span_id());
    assert_eq!(trace.as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert!(run.is_some_and(|run| !theirs.contains(&run)), "it was made in the worker's span");
    // Retries of a batch without a trace begin one; its results have none.
    assert_eq!(bench.take(QueueRole::Results).await.headers.traceparent, None);
    let (_, transport) = bench.stop().await; // else the worker would take the retried tasks itself
    let again = take(&*transport, QueueRole::Requeued).await;
    assert_eq!(again.headers.traceparent, results.headers.traceparent, "of the same run");
    let again = take(&*transport, QueueRole::Requeued).await;
    assert_eq!(again.headers.trace_id(), Some(silent.to_string().replace('-', "")));
}

#[tokio::test]
async fn rejected_task_is_not_retried() {
    let bench = Bench::start(vec![batch(JobId::generate(), "double", &json!({}), &[-2], 0)]).await;
    assert_eq!(bench.results().await["failed"][0]["attempts"], 1);
    bench.stop().await;
}

/// A batch of a kind that is not registered here waits for another worker, at no cost.
#[tokio::test]
async fn unknown_kind_is_left_to_others() {
    let unknown = batch(JobId::generate(), "triple", &json!({}), &[1], 2);
    let known = batch(JobId::generate(), "double", &json!({}), &[1], 0);
    let bench = Bench::start(vec![unknown.clone(), known]).await;
    bench.results().await; // of the known kind, whose batch comes later
    let (report, transport) = bench.stop().await;
    assert_eq!((report.done, report.errors), (1, 0));
    tokio::time::pause(); // the delay of 1 s passes at once
    let mut message = take(&*transport, QueueRole::Requeued).await;
    assert!((1..=4).contains(&message.headers.released), "{:?}", message.headers);
    message.headers.released = 0;
    assert_eq!(message, unknown.message, "it cost an attempt, or changed on the way");
}

#[tokio::test]
async fn malformed_batch_is_dead_lettered() {
    let garbage = Message { body: "{".into(), form: Batch::TYPE.into(), ..Message::default() };
    let short = {
        let mut short = batch(JobId::generate(), "double", &json!({}), &[1], 0);
        short.message.body = String::from_utf8(short.message.body.to_vec())
            .unwrap()
            .replace("\"count\":1", "\"count\":2")
            .into();
        short
    };
    let spec = batch(JobId::generate(), "double", &json!({"hold": "no boolean"}), &[1], 0);
    let bench = Bench::start(vec![to_queue(QueueRole::Tasks, garbage), short, spec]).await;
    let mut reasons = Vec::new();
    for _ in 0..3 {
        let message = bench.take(QueueRole::Dead).await;
        assert_eq!(message.headers.origin.as_deref(), Some("gristmill.default.tasks"));
        reasons.push(message.headers.reason.unwrap());
    }
    reasons.sort();
    assert!(reasons[0].contains("says it has 2 tasks, but has 1"), "{reasons:?}");
    assert!(reasons[1].contains("the body is no gristmill.batch.v1"), "{reasons:?}");
    assert!(reasons[2].contains("does not fit kind double"), "{reasons:?}");
    let (_, transport) = bench.stop().await;
    assert!(is_empty(&*transport, QueueRole::Tasks).await);
}

#[tokio::test]
async fn stopped_job_is_skipped() {
    let job = JobId::generate();
    let other = batch(JobId::generate(), "double", &json!({}), &[7], 0);
    let bench = Bench::start(vec![stopped(job), batch(job, "double", &json!({}), &[1, 2], 0), other]).await;
    assert_eq!(bench.results().await["done"][0]["outputs"], json!([14]));
    let (report, transport) = bench.stop().await;
    assert_eq!((report.skipped, report.done), (2, 1));
    assert!(is_empty(&*transport, QueueRole::Tasks).await && is_empty(&*transport, QueueRole::Results).await);
}

/// A leaving worker ends its running task and requeues the rest at no cost.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_worker_requeues_the_rest() {
    let job = JobId::generate();
    let held = batch(job, "double", &json!({"hold": true}), &[1, 2, 3], 0);
    let waiting = (0..4).map(|_| batch(JobId::generate(), "double", &json!({"hold": true}), &[9], 0));
    let bench = Bench::start([held].into_iter().chain(waiting).collect()).await;
    tokio::task::spawn_blocking(|| TASK_BEGUN.wait()).await.unwrap();
    let Bench { transport, worker: RunningWorker { leave, running } } = bench;
    leave.send(()).unwrap();
    // The waiting batches are requeued while the task still runs: the worker has begun to leave.
    for _ in 0..3 {
        let back = take(&*transport, QueueRole::Requeued).await;
        assert_eq!(wire::decode::<Batch<'_>>(&back).unwrap().tasks.get(), "[9]");
    }
    tokio::task::spawn_blocking(|| TASK_END.wait()).await.unwrap();
    let report = within(running).await.unwrap().unwrap();
    assert_eq!((report.done, report.abandoned), (1, 0));
    assert_eq!(HELD_COUNT.load(Ordering::SeqCst), 1, "a task began after the worker began to leave");
    // The last of the five may have been delivered before the worker stopped its consumer, or not.
    let (back, untouched) =
        (drain(&*transport, QueueRole::Requeued).await, drain(&*transport, QueueRole::Tasks).await);
    assert_eq!(3 + back.len() + untouched.len(), 5, "something was dropped, or handed back twice");
    assert!(
        untouched.iter().all(|delivery| !delivery.is_redelivered()),
        "what was held was dropped, not handed back"
    );
    let rest =
        back.iter().map(|delivery| &delivery.message).find(|message| message.job == Some(job)).unwrap();
    let batch = wire::decode::<Batch<'_>>(rest).unwrap();
    assert_eq!((batch.first, batch.tasks.get(), rest.headers.attempt), (TaskIndex(11), "[2,3]", 0));
}

/// Tasks and outputs whose encoding is user code that may panic.
struct Touchy(i64);

#[expect(clippy::panic_in_result_fn, reason = "one of the ways to behave badly")]
impl Serialize for Touchy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(self.0 != -5, "minus five");
        self.0.serialize(serializer)
    }
}

#[expect(clippy::panic_in_result_fn, reason = "one of the ways to behave badly")]
impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        assert!(number != -4, "minus four");
        Ok(Self(number))
    }
}

#[derive(Serialize, Deserialize)]
struct Fragile;

impl Job for Fragile {
    const KIND: &'static str = "fragile";
    type Task = Touchy;
    type Output = Touchy;
    type Report = ();

    fn split(&self) -> impl Iterator<Item = Result<Touchy, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: Touchy, _: &TaskContext) -> Result<Touchy, TaskError> {
        match task.0 {
            -6 => Err(TaskError::reject("\u{1}".repeat(3000))), // six times as long on the wire
            _ => Ok(task),
        }
    }
    fn collect(&self, (): &mut (), _: TaskIndex, _: Touchy) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[tokio::test]
async fn panic_of_user_code_costs_its_task() {
    let bench =
        Bench::start(vec![batch(JobId::generate(), "fragile", &json!(null), &[1, -4, -5, 2], 0)]).await;
    let results = bench.results_of(4).await;
    assert_eq!(results["done"][0]["outputs"], json!([1]), "{results}");
    assert_eq!(results["done"][1]["outputs"], json!([2]), "{results}");
    let reason = |n: usize| results["failed"][n]["reason"].as_str().unwrap().to_owned();
    assert!(reason(0).contains("minus four") && reason(1).contains("minus five"), "{results}");
    assert_eq!(bench.stop().await.0.done, 2);
}

/// Long failure reasons are spread over several messages.
#[tokio::test]
async fn long_reasons_take_several_messages() {
    let tasks = 500;
    let bench =
        Bench::start(vec![batch(JobId::generate(), "fragile", &json!(null), &vec![-6; tasks], 0)]).await;
    let mut failed = 0;
    while failed < tasks {
        let message = bench.take(QueueRole::Results).await;
        assert!(message.body.len() < 2 * wire::RESULTS_MESSAGE_BYTES, "{} bytes", message.body.len());
        failed += wire::decode::<Results<'_>>(&message).unwrap().failed.len();
    }
    bench.stop().await;
}

/// A dead letter is cut to the limits of a header and of a message.
#[tokio::test]
async fn oversize_dead_letter_is_cut() {
    let long = Message {
        body: format!("{{\"kind\":\"{}\"}}", "X".repeat(70_000)).into(),
        form: Batch::TYPE.into(),
        ..Message::default()
    };
    let large = Message { body: vec![b'x'; 15 << 20].into(), form: Batch::TYPE.into(), ..Message::default() };
    let bench = Bench::start(vec![to_queue(QueueRole::Tasks, long), to_queue(QueueRole::Tasks, large)]).await;
    for _ in 0..2 {
        let buried = bench.take(QueueRole::Dead).await;
        assert!(buried.headers.reason.unwrap().len() < 5_000 && buried.body.len() <= 8 << 20);
    }
    bench.stop().await;
}
