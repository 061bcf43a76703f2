//! The whole pipeline over transports that lose, refuse, repeat and reorder: the result is exact.

use std::{ops::ControlFlow, sync::Arc};

use gristmill::testing::{
    FaultCounts, FaultRates, Faults, FaultyTransport, FleetEnd, RepeatingTransport, run_over,
};
use gristmill_jobs::Spin;
use gristmill_shared::{
    Job, JobError, TaskContext, TaskError, TaskIndex, Transport, memory::MemoryTransport,
};
use serde::{Deserialize, Serialize};

use crate::harness::{Site, within};

const TASK_COUNT: u64 = 1_000;

async fn run(connect: impl Fn() -> Arc<dyn Transport> + Send + Sync) -> FleetEnd {
    let job = Spin { tasks: TASK_COUNT, ..Spin::default() };
    let state = tempfile::tempdir().unwrap();
    let connect = || std::future::ready(Ok(connect()));
    let end = within("the job", run_over(job, state.path(), connect)).await.unwrap();
    assert!(end.verified, "{end:?}");
    assert!(end.conclusion.text.contains(&(TASK_COUNT * (TASK_COUNT - 1) / 2).to_string()), "{end:?}");
    assert_eq!((end.account.done, end.account.failed, end.account.skipped), (TASK_COUNT, 0, 0), "{end:?}");
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_change_no_result() {
    let (mut again, mut restarts) = (0, 0);
    let mut seen = [0; 5];
    for seed in 0..10 {
        let broker = MemoryTransport::new();
        let faults = Faults::new(seed, FaultRates::default());
        let end = run(|| FaultyTransport::new(broker.connect(), &faults)).await;
        let FaultCounts {
            unknown_stored,
            unknown_not_stored,
            rejected,
            unroutable,
            disconnected,
            reconnected,
        } = faults.counts();
        let counts = [unknown_stored + unknown_not_stored, rejected, unroutable, disconnected, reconnected];
        seen.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        again += end.account.duplicates + end.account.late;
        restarts += end.restarts;
    }
    println!("faults {seen:?}, {restarts} restarts, {again} outcomes ignored");
    assert!(seen.iter().all(|count| *count > 0), "a fault never happened: {seen:?}");
    assert!(restarts > 0 && again > 0, "{restarts} restarts, {again} outcomes came again");
}

/// Messages that come three times, in another order, count once.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_messages_count_once() {
    let broker = MemoryTransport::new();
    let end = run(|| RepeatingTransport::new(broker.connect(), 3, 1)).await;
    assert_eq!(end.restarts, 0);
    // Each batch is run three times, and the results of each are delivered three times.
    let ignored = end.account.duplicates + end.account.late;
    assert!(ignored >= TASK_COUNT * 2, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_and_repeats_change_nothing() {
    for seed in 0..4 {
        let broker = MemoryTransport::new();
        let faults = Faults::new(seed, FaultRates::default());
        let end =
            run(|| RepeatingTransport::new(FaultyTransport::new(broker.connect(), &faults), 2, seed)).await;
        assert!(end.account.duplicates + end.account.late > TASK_COUNT / 2, "{end:?}");
    }
}

/// A job whose task 17 has an output larger than RabbitMQ 4 takes.
#[derive(Serialize, Deserialize)]
struct Verbose {}

impl Job for Verbose {
    const KIND: &'static str = "verbose";
    type Task = u64;
    type Output = String;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..50).map(Ok)
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<String, TaskError> {
        Ok("x".repeat(if task == 17 { 17 << 20 } else { 10 }))
    }
    fn collect(&self, report: &mut u64, _: TaskIndex, output: String) -> ControlFlow<()> {
        *report += output.len() as u64;
        ControlFlow::Continue(())
    }
}

/// An output that the broker does not take fails its task, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn oversize_output_fails_only_its_task() {
    let (site, url) = (Site::new(), crate::broker_url());
    let state = tempfile::tempdir().unwrap();
    let run = run_over(Verbose {}, state.path(), || gristmill::connect(&url, "test"));
    let end = within("the job", run).await.unwrap();
    assert!(end.verified && end.restarts == 0, "{end:?}");
    assert_eq!((end.account.done, end.account.failed), (49, 1), "{end:?}");
    let ledger = state.path().join("ledger");
    let failures = site.run(&format!("sink failures {} --ledger {}", end.job, ledger.display())).await;
    let (index, why) = failures.stdout.split_once('\t').unwrap();
    assert!(index == "17" && why.contains("its output takes 17825794 bytes, more than"), "{failures:?}");
}
