//! Async tasks of which one blocks the slot's thread, on the memory transport.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};

use gristmill_shared::{Job, JobError, Policy, QueueRole, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};

use crate::support::{
    ReleaseFlag, RunningWorker, TestBatch, consume, open_lane, publish, take_results, test_worker,
};

const TASK_TIMEOUT_MS: u64 = 200;

static RELEASED_FLAG: ReleaseFlag = ReleaseFlag::new();

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
            Act::Block => RELEASED_FLAG.wait(),
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
    let transport = open_lane().await;
    let acts = [Act::Await, Act::Block, Act::Quick, Act::Quick, Act::Quick];
    let policy = Policy { max_attempts: 1, task_timeout_ms: Some(TASK_TIMEOUT_MS), ..Policy::default() };
    publish(&*transport, vec![TestBatch { policy, ..TestBatch::of(Acts::KIND) }.outgoing(&acts)]).await;
    let worker = RunningWorker::start(test_worker::<Acts>(1), Arc::clone(&transport) as _);

    let mut results = consume(&*transport, QueueRole::Results, 10).await;
    let (mut done, mut failed) = (Vec::new(), BTreeMap::new());
    while done.len() + failed.len() < acts.len() {
        take_results(&mut *results, 10, |results| {
            let spans = results.done.iter();
            done.extend(spans.flat_map(|span| serde_json::from_str::<Vec<u64>>(span.outputs.get()).unwrap()));
            let failures = results.failed.iter();
            failed.extend(failures.map(|failed| (failed.index.0, failed.reason.to_string())));
        })
        .await;
    }
    done.sort_unstable();
    assert_eq!(done, [10, 12, 13, 14]);
    let reason = format!("it ran longer than the job's task timeout of {TASK_TIMEOUT_MS}ms");
    assert_eq!(failed, BTreeMap::from([(11, reason)]));
    RELEASED_FLAG.release();
    let report = worker.stop().await;
    assert_eq!((report.done, report.errors, report.abandoned), (4, 1, 0));
}
