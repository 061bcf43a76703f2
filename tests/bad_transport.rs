//! The whole pipeline over transports that lose, refuse, repeat and reorder: the result is exact.

use std::sync::Arc;

use gristmill::testing::{FaultCounts, FaultRates, Faults, Faulty, FleetEnd, Repeating, run_over};
use gristmill_jobs::Spin;
use gristmill_shared::{Transport, memory::MemoryTransport};

use crate::harness::within;

const TASKS: u64 = 1_000;

async fn run(connect: impl Fn() -> Arc<dyn Transport> + Send + Sync) -> FleetEnd {
    let job = Spin { tasks: TASKS, work: Default::default(), payload: 0, fail_rate: 0.0, seed: 0 };
    let state = tempfile::tempdir().unwrap();
    let end = within("the job", run_over(job, state.path(), connect)).await.unwrap();
    assert!(end.verified, "{end:?}");
    assert!(end.conclusion.text.contains(&(TASKS * (TASKS - 1) / 2).to_string()), "{end:?}");
    assert_eq!((end.account.done, end.account.failed, end.account.skipped), (TASKS, 0, 0), "{end:?}");
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_every_turn_changes_no_result() {
    let (mut again, mut restarts) = (0, 0);
    let mut seen = [0; 5];
    for seed in 0..10 {
        let broker = MemoryTransport::new();
        let faults = Faults::new(seed, FaultRates::default());
        let end = run(|| Faulty::new(broker.connect(), &faults)).await;
        let FaultCounts { unknown_stored, unknown_not_stored, rejected, unroutable, lost, renewed } =
            faults.counts();
        let counts = [unknown_stored + unknown_not_stored, rejected, unroutable, lost, renewed];
        seen.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        again += end.account.duplicates + end.account.late;
        restarts += end.restarts;
    }
    println!("faults {seen:?}, {restarts} restarts, {again} outcomes ignored");
    assert!(seen.iter().all(|count| *count > 0), "a fault never happened: {seen:?}");
    assert!(restarts > 0 && again > 0, "{restarts} restarts, {again} outcomes came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_three_times_in_another_order_counts_once() {
    let broker = MemoryTransport::new();
    let end = run(|| Repeating::new(broker.connect(), 3, 1)).await;
    assert_eq!(end.restarts, 0);
    // Each batch is run three times, and the results of each are delivered three times.
    let ignored = end.account.duplicates + end.account.late;
    assert!(ignored >= TASKS * 2, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_and_repetitions_together_change_no_result() {
    for seed in 0..4 {
        let broker = MemoryTransport::new();
        let faults = Faults::new(seed, FaultRates::default());
        let end = run(|| Repeating::new(Faulty::new(broker.connect(), &faults), 2, seed)).await;
        assert!(end.account.duplicates + end.account.late > TASKS / 2, "{end:?}");
    }
}
