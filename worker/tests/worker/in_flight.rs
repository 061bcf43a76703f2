//! Async tasks of which one blocks the slot's thread, on the memory transport.

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use gristmill_shared::{
    Address, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy, QueueRole, Registry, Round,
    TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results},
};
use gristmill_worker::Worker;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{sync::oneshot, time::timeout};

const WAIT_MAX: Duration = Duration::from_secs(60);
const TASK_TIMEOUT_MS: u64 = 200;

static RELEASED_FLAG: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn wait_for_release() {
    drop(RELEASED_FLAG.1.wait_while(RELEASED_FLAG.0.lock().unwrap(), |released| !*released).unwrap());
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Act {
    /// Waits, and so is in flight when its neighbour blocks.
    Await,
    /// Blocks its thread beyond any limit, within a future.
    Block,
    Quick,
}

#[derive(Serialize, Deserialize)]
struct Acts;

impl Job for Acts {
    const KIND: &'static str = "acts";
    const IN_FLIGHT: u32 = 4;
    type Task = Act;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<Act, JobError>> + Send {
        std::iter::empty()
    }
    async fn process_async(&self, act: Act, cx: &TaskContext) -> Result<u64, TaskError> {
        match act {
            Act::Await => tokio::time::sleep(Duration::from_millis(TASK_TIMEOUT_MS / 4)).await,
            Act::Block => wait_for_release(),
            Act::Quick => {}
        }
        Ok(cx.index().0)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The task that blocks fails, though a neighbour has been in flight for longer; the neighbours run
/// again on another thread.
#[tokio::test]
async fn blocking_async_task_fails_alone() {
    let transport = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let acts = [Act::Await, Act::Block, Act::Quick, Act::Quick, Act::Quick];
    let message = Batch {
        job: JobId::generate(),
        kind: Kind::new("acts").unwrap(),
        spec: &to_raw_value(&json!(null)).unwrap(),
        policy: Policy { max_attempts: 1, task_timeout_ms: Some(TASK_TIMEOUT_MS), ..Policy::default() },
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(10),
        count: u32::try_from(acts.len()).unwrap(),
        tasks: &to_raw_value(&acts).unwrap(),
    }
    .to_message(Headers::default(), "test");
    let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
    publish_until_stored(&*publisher, vec![Outgoing { to, message }]).await.unwrap();
    let mut registry = Registry::default();
    registry.register::<Acts>().unwrap();
    let (leave, left) = oneshot::channel::<()>();
    let worker = Worker::new(registry, "test-worker".parse().unwrap()).slots(NonZeroU16::MIN);
    let worker = tokio::spawn(worker.run_until(Arc::clone(&transport) as _, async {
        let _ = left.await;
    }));

    let mut consumer = transport.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();
    let (mut done, mut failed) = (Vec::new(), BTreeMap::new());
    while done.len() + failed.len() < acts.len() {
        for delivery in timeout(WAIT_MAX, consumer.recv(10)).await.unwrap().unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            let spans = results.done.iter();
            done.extend(spans.flat_map(|span| serde_json::from_str::<Vec<u64>>(span.outputs.get()).unwrap()));
            let failures = results.failed.iter();
            failed.extend(failures.map(|failed| (failed.index.0, failed.reason.to_string())));
            delivery.receipt.ack();
        }
    }
    done.sort_unstable();
    assert_eq!(done, [10, 12, 13, 14]);
    let reason = format!("it ran longer than the job's task timeout of {TASK_TIMEOUT_MS}ms");
    assert_eq!(failed, BTreeMap::from([(11, reason)]));
    *RELEASED_FLAG.0.lock().unwrap() = true;
    RELEASED_FLAG.1.notify_all();
    leave.send(()).unwrap();
    let report = timeout(WAIT_MAX, worker).await.unwrap().unwrap().unwrap();
    assert_eq!((report.done, report.errors, report.abandoned), (4, 1, 0));
}
