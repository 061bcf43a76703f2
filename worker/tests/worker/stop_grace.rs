//! Tasks that go on after their job was stopped, on the memory transport.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, Condvar, LazyLock, Mutex},
    time::{Duration, Instant},
};

use gristmill_shared::{
    Address, EventFilter, EventReader, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy,
    Publisher, QueueRole, Registry, Round, TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results, RunningTask, Stopped, WireMessage as _, WorkerHeartbeat},
};
use gristmill_worker::{Worker, WorkerError, WorkerReport};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

const WAIT_MAX: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_millis(300);
/// A time limit that no test waits for.
const LONG_LIMIT_MS: u64 = 600_000;

/// The behaviour of a task. Tasks that hold a thread have their own number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Act {
    /// Blocks until it is released, and never checks for a stop.
    Hold(u64),
    /// Spins until the job is stopped.
    Look(u64),
    Quick,
}

/// The threads that have begun a numbered task.
static BEGUN_TASKS: LazyLock<watch::Sender<BTreeMap<u64, String>>> =
    LazyLock::new(|| watch::Sender::new(BTreeMap::new()));
static RELEASED_TASKS: (Mutex<BTreeSet<u64>>, Condvar) = (Mutex::new(BTreeSet::new()), Condvar::new());

fn thread() -> String {
    format!("{:?}", std::thread::current().id())
}

async fn wait_begun(number: u64) -> String {
    let mut begun = BEGUN_TASKS.subscribe();
    let begun = within(begun.wait_for(|begun| begun.contains_key(&number))).await.unwrap();
    begun[&number].clone()
}

fn wait_for_release(number: u64) {
    let released = RELEASED_TASKS.0.lock().unwrap();
    drop(RELEASED_TASKS.1.wait_while(released, |released| !released.contains(&number)).unwrap());
}

fn release(number: u64) {
    RELEASED_TASKS.0.lock().unwrap().insert(number);
    RELEASED_TASKS.1.notify_all();
}

/// A job whose outputs are the threads that ran its tasks.
#[derive(Serialize, Deserialize)]
struct Acts;

impl Job for Acts {
    const KIND: &'static str = "acts";
    type Task = Act;
    type Output = String;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<Act, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, act: Act, cx: &TaskContext) -> Result<String, TaskError> {
        match act {
            Act::Hold(number) => {
                BEGUN_TASKS.send_modify(|begun| drop(begun.insert(number, thread())));
                wait_for_release(number);
            }
            Act::Look(number) => {
                BEGUN_TASKS.send_modify(|begun| drop(begun.insert(number, thread())));
                loop {
                    cx.check()?;
                    std::thread::yield_now();
                }
            }
            Act::Quick => {}
        }
        Ok(thread())
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: String) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(WAIT_MAX, future).await.expect("it takes too long")
}

/// A worker with one slot.
struct Bench {
    transport: Arc<MemoryTransport>,
    publisher: Arc<dyn Publisher>,
    events: Box<dyn EventReader>,
    leave: oneshot::Sender<()>,
    worker: JoinHandle<Result<WorkerReport, WorkerError>>,
}

impl Bench {
    async fn start() -> Self {
        let transport = MemoryTransport::new();
        transport.open_lane(&Lane::default()).await.unwrap();
        let publisher = transport.publisher().await.unwrap();
        let events = transport.events(EventFilter::Lane(Lane::default())).await.unwrap();
        let mut registry = Registry::default();
        registry.register::<Acts>().unwrap();
        let (leave, left) = oneshot::channel::<()>();
        let worker = Worker::new(registry, "test-worker".parse().unwrap())
            .slots(NonZeroU16::MIN)
            .stop_grace(STOP_GRACE)
            .run_until(Arc::clone(&transport) as _, async {
                let _ = left.await;
            });
        Self { transport, publisher, events, leave, worker: tokio::spawn(worker) }
    }

    /// Sends a batch of a new job, from index 10 on.
    async fn send(&mut self, acts: &[Act], task_timeout_ms: Option<u64>) -> JobId {
        let job = JobId::generate();
        let message = Batch {
            job,
            kind: Kind::new("acts").unwrap(),
            spec: &to_raw_value(&json!(null)).unwrap(),
            policy: Policy { task_timeout_ms, ..Policy::default() },
            round: Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: TaskIndex(10),
            count: u32::try_from(acts.len()).unwrap(),
            tasks: &to_raw_value(acts).unwrap(),
        }
        .to_message(Headers::default(), "test");
        let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
        publish_until_stored(&*self.publisher, vec![Outgoing { to, message }]).await.unwrap();
        job
    }

    async fn stop(&mut self, job: JobId) {
        let stopped = Stopped { job, round: Round(0), reason: "cancelled".into() };
        let message = stopped.message(format!("{job}/stopped"), "test");
        publish_until_stored(&*self.publisher, vec![Outgoing { to: Address::Journal, message }])
            .await
            .unwrap();
    }

    /// Returns the jobs and outputs of the next results.
    async fn results(&mut self) -> Vec<(JobId, Vec<String>)> {
        let mut consumer =
            self.transport.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();
        let mut outputs = Vec::new();
        for delivery in within(consumer.recv(10)).await.unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            assert!(results.failed.is_empty(), "{results:?}");
            for span in results.done {
                outputs.push((results.job, serde_json::from_str(span.outputs.get()).unwrap()));
            }
            delivery.receipt.ack();
        }
        outputs
    }

    /// Waits for a heartbeat with the wanted running tasks.
    async fn wait_heartbeat(
        &mut self,
        wanted: impl Fn(&[RunningTask]) -> bool + Send + Sync,
    ) -> Vec<RunningTask> {
        within(async {
            loop {
                let event = self.events.next().await.unwrap();
                if let Ok(beat) = wire::decode::<WorkerHeartbeat>(&event)
                    && wanted(&beat.running)
                {
                    return beat.running;
                }
            }
        })
        .await
    }

    async fn is_empty(&mut self, role: QueueRole) -> bool {
        let mut consumer = self.transport.consume(&role.of(&Lane::default()), 1).await.unwrap();
        timeout(Duration::from_millis(50), consumer.recv(1)).await.is_err()
    }
}

#[tokio::test]
async fn stopped_task_loses_its_slot() {
    for (number, limit) in [(1, None), (2, Some(LONG_LIMIT_MS))] {
        let mut bench = Bench::start().await;
        let job = bench.send(&[Act::Quick, Act::Hold(number), Act::Quick], limit).await;
        let old_thread = wait_begun(number).await;
        let next = bench.send(&[Act::Quick], None).await;
        let stopped = Instant::now();
        bench.stop(job).await;
        let results = bench.results().await;
        let took = stopped.elapsed();
        // The stopped job has no outcome: its task goes on.
        assert_eq!(results.len(), 1, "{results:?}");
        assert_eq!(results[0].0, next);
        assert_ne!(results[0].1, [old_thread], "the same thread");
        assert!((STOP_GRACE..WAIT_MAX / 2).contains(&took), "{took:?}");

        let named = bench.wait_heartbeat(|running| !running.is_empty()).await;
        let [task] = named.as_slice() else { panic!("{named:?}") };
        assert_eq!((task.job, task.index, task.kind.as_str()), (job, TaskIndex(11), "acts"));
        assert_eq!((task.first, task.count, task.attempt, task.slot), (TaskIndex(10), 3, 1, 0));
        assert!(task.stuck && task.stopped, "{task:?}");
        release(number);
        bench.wait_heartbeat(<[RunningTask]>::is_empty).await; // its thread has ended
        for role in [QueueRole::Results, QueueRole::Requeued] {
            assert!(bench.is_empty(role).await, "{role:?}");
        }
        bench.leave.send(()).unwrap();
        let report = within(bench.worker).await.unwrap().unwrap();
        assert_eq!((report.done, report.errors, report.abandoned, report.handed_back), (1, 0, 0, 0));
    }
}

#[tokio::test]
async fn task_that_checks_keeps_its_thread() {
    let mut bench = Bench::start().await;
    let job = bench.send(&[Act::Look(3)], None).await;
    let thread = wait_begun(3).await;
    let next = bench.send(&[Act::Quick], None).await;
    bench.stop(job).await;
    assert_eq!(bench.results().await, [(next, vec![thread])]);
    bench.leave.send(()).unwrap();
    within(bench.worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn heartbeat_names_running_tasks() {
    let mut bench = Bench::start().await;
    let job = bench.send(&[Act::Quick, Act::Hold(4)], None).await;
    wait_begun(4).await;
    let named = bench.wait_heartbeat(|running| !running.is_empty()).await;
    assert_eq!((named[0].job, named[0].index, named[0].slot), (job, TaskIndex(11), 0));
    assert!(!named[0].stuck && !named[0].stopped, "{named:?}");
    release(4);
    assert_eq!(bench.results().await[0].0, job);
    bench.wait_heartbeat(<[RunningTask]>::is_empty).await;
    bench.leave.send(()).unwrap();
    within(bench.worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn too_many_stopped_tasks_end_the_worker() {
    let mut bench = Bench::start().await;
    for number in [5, 6] {
        let job = bench.send(&[Act::Hold(number)], None).await;
        wait_begun(number).await;
        bench.stop(job).await;
    }
    let error = within(bench.worker).await.unwrap().unwrap_err();
    assert!(matches!(error, WorkerError::Stuck { threads: 2, slots: 1 }), "{error}");
    release(5);
    release(6);
}
