//! Early stop: the time for which slots go on after the sink has committed the end of the job.

use std::{fs::File, path::PathBuf, time::Duration};

use gristmill_jobs::{Spin, SpinWork};
use gristmill_ledger::LedgerReader;
use gristmill_sqlite::SqliteAccess;
use tokio::time::sleep;

use crate::{
    Bench, BenchResult,
    figure::{Better, FigureSpec, quantile},
    fleet::BenchFleet,
    kinds::TaskLog,
};

const STOP_P50: FigureSpec =
    FigureSpec::shown("early stop, commit to last slot idle, p50", "ms", Better::Lower);
const STOP_P95: FigureSpec =
    FigureSpec::judged("early stop, commit to last slot idle, p95", "ms", Better::Lower, 0.50).demand(150.0);

/// The number of workers.
const WORKER_COUNT: usize = 2;
/// The number of each job's tasks, which is far more than are run.
const TASK_COUNT: u64 = 1_000_000;
/// The duration of a task, in µs, on a core of its own.
const TASK_MICROS: u32 = 2_000;
/// The range of the task that ends a job.
const TARGET_RANGE: std::ops::Range<u64> = 200..2_000;
/// The interval at which the workers' task logs are read.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The number of equal idle readings after which all workers count as idle.
const QUIET_POLLS: u32 = 8;

impl Bench {
    /// Runs as many jobs as the scale states, one after the other.
    pub(crate) async fn measure_early_stop(&mut self) -> BenchResult<()> {
        let paths: Vec<PathBuf> =
            (0..WORKER_COUNT).map(|n| self.env.dir().join(format!("diary-{n}"))).collect();
        let fleet = BenchFleet::start_own(&self.env, &paths).await?;
        let task_logs = paths.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
        let spin = Spin { tasks: TASK_COUNT, work: SpinWork::micros(TASK_MICROS), ..Spin::default() };
        let spec = serde_json::to_string(&spin)?;
        let mut waits = Vec::new();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..self.scale.stops {
            let target = random.u64(TARGET_RANGE).to_string();
            let done = fleet.run(&["hunt", "--spec", &spec, "--target", &target]).await?;
            let last_us = wait_idle(&task_logs).await?;
            if done.finished.conclusion.text != target || done.finished.account.skipped == 0 {
                return Err(format!("the search for {target} ended so: {:?}", done.finished).into());
            }
            let mut ledger = LedgerReader::new(Box::new(SqliteAccess::open(&fleet.ledger())?));
            let view = ledger.job(done.job)?.ok_or("the ledger lost the job")?;
            let committed_us = view.summary.finished_ms.ok_or("the job has not ended")? * 1_000;
            waits.push(last_us.saturating_sub(committed_us) as f64 / 1e3);
        }
        fleet.shut_down().await?;
        self.report.add(&STOP_P50, quantile(&waits, 0.5));
        self.report.add(&STOP_P95, quantile(&waits, 0.95));
        Ok(())
    }
}

/// Waits until all workers are idle. Returns the end of the last task, in µs since 1970.
async fn wait_idle(task_logs: &[File]) -> BenchResult<u64> {
    let mut quiet = 0;
    let mut before = Vec::new();
    loop {
        let now = task_logs.iter().map(TaskLog::read).collect::<Result<Vec<_>, _>>()?;
        let idle = now.iter().all(|log| log.begun == log.ended);
        quiet = if idle && now == before { quiet + 1 } else { 0 };
        if quiet == QUIET_POLLS {
            return Ok(now.iter().map(|log| log.last_end_us).max().unwrap_or_default());
        }
        before = now;
        sleep(POLL_INTERVAL).await;
    }
}
