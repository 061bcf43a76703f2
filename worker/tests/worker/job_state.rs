//! The state of a job in a worker: opened once, shared by its tasks, dropped when the job has
//! ended.

use std::{
    ops::ControlFlow,
    sync::{Arc, Barrier, LazyLock},
    time::Duration,
};

use gristmill_shared::{
    Job, JobError, JobId, Policy, QueueRole, State, TaskContext, TaskError, TaskIndex,
    memory::MemoryTransport,
};
use gristmill_worker::WorkerReport;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use crate::support::{
    RunningWorker, TestBatch, consume, open_lane, publish, stopped, take_results, test_worker, within,
};

/// The time of a slow `prepare`: longer than the time limit of the tests' tasks.
const SLOW_PREPARE: Duration = Duration::from_millis(400);

/// An event in the life of the state of the job with this name, with its thread.
#[derive(Clone, Debug)]
struct StateEvent {
    name: String,
    what: &'static str,
    thread: String,
}

static SEEN_EVENTS: LazyLock<watch::Sender<Vec<StateEvent>>> =
    LazyLock::new(|| watch::Sender::new(Vec::new()));
/// The barrier at which the prepare of the job `held` meets the test.
static HELD_PREPARE: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));

fn record_event(name: &str, what: &'static str) {
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    SEEN_EVENTS.send_modify(|events| events.push(StateEvent { name: name.into(), what, thread }));
}

/// Returns the events of this name's states so far.
fn events_of(name: &str, what: &str) -> Vec<StateEvent> {
    SEEN_EVENTS.borrow().iter().filter(|event| event.name == name && event.what == what).cloned().collect()
}

/// A job whose state records when it is opened and dropped. Its name selects the behaviour of
/// `prepare`.
#[derive(Serialize, Deserialize)]
struct Stateful {
    name: String,
}

struct DropRecorder(String);

impl Drop for DropRecorder {
    fn drop(&mut self) {
        record_event(&self.0, "dropped");
        assert!(self.0 != "panics-on-drop", "the state of {} panics when it is dropped", self.0);
    }
}

impl Job for Stateful {
    const KIND: &'static str = "stateful";
    type Task = u64;
    type Output = String;
    type Report = ();

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    #[expect(clippy::panic_in_result_fn, reason = "one of the ways to behave badly")]
    #[expect(clippy::disallowed_methods, reason = "it takes its time")]
    fn prepare(&self) -> Result<State, TaskError> {
        let before = events_of(&self.name, "prepared").len();
        record_event(&self.name, "prepared");
        match self.name.as_str() {
            "held" => drop(HELD_PREPARE.wait()),
            "slow" => std::thread::sleep(SLOW_PREPARE),
            "fails" | "down" if before == 0 => Err("no server")?,
            "panics" => panic!("no luck"),
            _ => {}
        }
        Ok(State::new(DropRecorder(self.name.clone())))
    }
    fn process(&self, _: u64, cx: &TaskContext) -> Result<String, TaskError> {
        Ok(cx.state::<DropRecorder>()?.0.clone())
    }
    fn collect(&self, (): &mut (), _: TaskIndex, _: String) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A worker on its own transport.
struct Bench {
    transport: Arc<MemoryTransport>,
    worker: RunningWorker,
}

impl Bench {
    async fn start(slots: u16) -> Self {
        let transport = open_lane().await;
        let worker = RunningWorker::start(test_worker::<Stateful>(slots), Arc::clone(&transport) as _);
        Self { transport, worker }
    }

    /// Publishes `batches` batches of one task each.
    async fn submit(&self, job: JobId, name: &str, batches: u64) {
        let policy = Policy { task_timeout_ms: Some(300), max_attempts: 1, ..Policy::default() };
        let batch = |first| {
            let (spec, policy) = (json!({"name": name}), policy.clone());
            TestBatch { job, spec, policy, first, ..TestBatch::of(Stateful::KIND) }.outgoing(&[first])
        };
        publish(&*self.transport, (0..batches).map(batch).collect()).await;
    }

    /// Takes results until this number of tasks has an outcome. Returns the reasons of those that
    /// failed, and the total time.
    async fn outcomes(&self, tasks: u64) -> (Vec<String>, Duration) {
        let (mut seen, mut reasons, mut busy) = (0, Vec::new(), 0);
        let mut consumer = consume(&*self.transport, QueueRole::Results, 100).await;
        while seen < tasks {
            take_results(&mut *consumer, 100, |results| {
                seen += results.done.iter().map(|span| u64::from(span.count)).sum::<u64>();
                seen += results.failed.len() as u64;
                busy += results.busy_us;
                reasons.extend(results.failed.iter().map(|failed| failed.reason.to_string()));
            })
            .await;
        }
        consumer.close().await;
        (reasons, Duration::from_micros(busy))
    }

    async fn end_job(&self, job: JobId) {
        publish(&*self.transport, vec![stopped(job)]).await;
    }

    async fn stop(self) -> WorkerReport {
        self.worker.stop().await
    }
}

async fn wait_dropped(name: &str) -> StateEvent {
    let mut events = SEEN_EVENTS.subscribe();
    within(events.wait_for(|_| !events_of(name, "dropped").is_empty())).await.unwrap();
    events_of(name, "dropped").remove(0)
}

/// Many batches on several slots share one state, which is dropped on a slot's thread although all
/// slots are idle.
#[tokio::test]
async fn state_is_shared_and_dropped_at_the_end() {
    let bench = Bench::start(4).await;
    let job = JobId::generate();
    bench.submit(job, "shared", 40).await;
    assert_eq!(bench.outcomes(40).await.0, [""; 0]);
    assert_eq!(events_of("shared", "prepared").len(), 1);
    assert!(events_of("shared", "dropped").is_empty(), "the job has not ended");
    bench.end_job(job).await;
    let dropped = wait_dropped("shared").await;
    assert!(dropped.thread.starts_with("slot-"), "{dropped:?}");
    assert_eq!(bench.stop().await.done, 40);
    assert_eq!(events_of("shared", "dropped").len(), 1);
}

#[tokio::test]
async fn leaving_worker_drops_its_states() {
    let bench = Bench::start(2).await;
    bench.submit(JobId::generate(), "leaving", 3).await;
    bench.outcomes(3).await;
    bench.stop().await;
    let dropped = wait_dropped("leaving").await;
    assert!(dropped.thread.starts_with("slot-"), "{dropped:?}");
}

/// A slow prepare delays the slots that need its job, and no other.
#[tokio::test]
async fn slow_prepare_blocks_no_other_job() {
    let bench = Bench::start(2).await;
    bench.submit(JobId::generate(), "held", 1).await;
    let mut events = SEEN_EVENTS.subscribe();
    within(events.wait_for(|_| events_of("held", "prepared").len() == 1)).await.unwrap();
    bench.submit(JobId::generate(), "other", 5).await;
    assert_eq!(bench.outcomes(5).await.0, [""; 0], "while the first job is being prepared");
    tokio::task::spawn_blocking(|| HELD_PREPARE.wait()).await.unwrap();
    bench.outcomes(1).await;
    assert_eq!(bench.stop().await.done, 6);
}

/// The time of `prepare` counts neither for a time limit nor for the size of batches.
#[tokio::test]
async fn prepare_time_counts_for_no_task() {
    let bench = Bench::start(1).await;
    bench.submit(JobId::generate(), "slow", 1).await;
    let (reasons, busy) = bench.outcomes(1).await;
    assert_eq!(reasons, [""; 0], "the time limit of 300 ms was applied");
    assert!(busy < SLOW_PREPARE / 2, "{busy:?}");
    bench.stop().await;
}

#[tokio::test]
async fn failed_prepare_fails_its_batch_alone() {
    let bench = Bench::start(1).await;
    let job = JobId::generate();
    bench.submit(job, "fails", 1).await;
    assert_eq!(bench.outcomes(1).await.0, ["preparing the job's state: no server"]);
    tokio::time::sleep(Duration::from_millis(1_100)).await; // the pause itself is tested
    bench.submit(job, "fails", 1).await;
    assert_eq!(bench.outcomes(1).await.0, [""; 0], "the next batch prepares again");
    bench.submit(JobId::generate(), "panics", 1).await;
    assert_eq!(bench.outcomes(1).await.0, ["preparing the job's state: panic: no luck"]);
    assert_eq!(bench.stop().await.done, 1);
}

/// A host on which `prepare` fails once does not fail the other tasks of the job.
#[tokio::test]
async fn failed_prepare_spares_other_batches() {
    let bench = Bench::start(1).await;
    bench.submit(JobId::generate(), "down", 5).await;
    let reasons = bench.outcomes(5).await.0;
    assert_eq!(reasons, ["preparing the job's state: no server"], "of the batch that tried");
    assert_eq!(events_of("down", "prepared").len(), 2);
    assert_eq!(bench.stop().await.done, 4);
}

#[tokio::test]
async fn panic_in_drop_ends_no_slot() {
    let bench = Bench::start(1).await;
    let job = JobId::generate();
    bench.submit(job, "panics-on-drop", 1).await;
    bench.outcomes(1).await;
    bench.end_job(job).await;
    wait_dropped("panics-on-drop").await;
    bench.submit(JobId::generate(), "after", 1).await;
    bench.outcomes(1).await;
    assert_eq!(bench.stop().await.done, 2);
}
