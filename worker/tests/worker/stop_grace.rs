//! Tasks that go on after their job was stopped, on the memory transport.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Arc, Condvar, LazyLock, Mutex},
    time::{Duration, Instant},
};

use gristmill_shared::{
    EventFilter, EventReader, Job, JobError, JobId, Lane, Policy, QueueRole, TaskContext, TaskError,
    TaskIndex, Transport,
    memory::MemoryTransport,
    wire::{self, RunningTask, WorkerHeartbeat},
};
use gristmill_worker::WorkerError;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::support::{
    RunningWorker, TEST_TIMEOUT, TestBatch, consume, is_empty, open_lane, publish, stopped, take_results,
    test_worker, within,
};

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

/// A worker with one slot.
struct Bench {
    transport: Arc<MemoryTransport>,
    events: Box<dyn EventReader>,
    worker: RunningWorker,
}

impl Bench {
    async fn start() -> Self {
        let transport = open_lane().await;
        let events = transport.events(EventFilter::Lane(Lane::default())).await.unwrap();
        let worker = test_worker::<Acts>(1).stop_grace(STOP_GRACE);
        let worker = RunningWorker::start(worker, Arc::clone(&transport) as _);
        Self { transport, events, worker }
    }

    /// Sends a batch of a new job, from index 10 on.
    async fn send(&mut self, acts: &[Act], task_timeout_ms: Option<u64>) -> JobId {
        let policy = Policy { task_timeout_ms, ..Policy::default() };
        let batch = TestBatch { policy, ..TestBatch::of(Acts::KIND) };
        let job = batch.job;
        publish(&*self.transport, vec![batch.outgoing(acts)]).await;
        job
    }

    async fn stop(&mut self, job: JobId) {
        publish(&*self.transport, vec![stopped(job)]).await;
    }

    /// Returns the jobs and outputs of the next results.
    async fn results(&mut self) -> Vec<(JobId, Vec<String>)> {
        let mut consumer = consume(&*self.transport, QueueRole::Results, 10).await;
        let mut outputs = Vec::new();
        take_results(&mut *consumer, 10, |results| {
            assert!(results.failed.is_empty(), "{results:?}");
            for span in results.done {
                outputs.push((results.job, serde_json::from_str(span.outputs.get()).unwrap()));
            }
        })
        .await;
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
        assert!((STOP_GRACE..TEST_TIMEOUT / 2).contains(&took), "{took:?}");

        let named = bench.wait_heartbeat(|running| !running.is_empty()).await;
        let [task] = named.as_slice() else { panic!("{named:?}") };
        assert_eq!((task.job, task.index, task.kind.as_str()), (job, TaskIndex(11), "acts"));
        assert_eq!((task.first, task.count, task.attempt, task.slot), (TaskIndex(10), 3, 1, 0));
        assert!(task.stuck && task.stopped, "{task:?}");
        release(number);
        bench.wait_heartbeat(<[RunningTask]>::is_empty).await; // its thread has ended
        for role in [QueueRole::Results, QueueRole::Requeued] {
            assert!(is_empty(&*bench.transport, role).await, "{role:?}");
        }
        let report = bench.worker.stop().await;
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
    bench.worker.stop().await;
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
    bench.worker.stop().await;
}

#[tokio::test]
async fn too_many_stopped_tasks_end_the_worker() {
    let mut bench = Bench::start().await;
    for number in [5, 6] {
        let job = bench.send(&[Act::Hold(number)], None).await;
        wait_begun(number).await;
        bench.stop(job).await;
    }
    let error = bench.worker.ended().await.unwrap_err();
    assert!(matches!(error, WorkerError::Stuck { threads: 2, slots: 1 }), "{error}");
    release(5);
    release(6);
}
