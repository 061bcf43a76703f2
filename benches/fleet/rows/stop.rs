//! Early stop: how long slots go on after the sink has committed what ends the job.

use std::{fs::File, path::PathBuf, time::Duration};

use gristmill_jobs::{Spin, Work};
use gristmill_sink::LedgerReader;
use tokio::time::sleep;

use crate::{
    Bench, Outcome,
    figure::{Better, Gauge, quantile},
    fleet::Fleet,
    kinds::Diary,
};

const P50: Gauge = Gauge::shown("early stop, commit to last slot idle, p50", "ms", Better::Lower);
const P95: Gauge =
    Gauge::judged("early stop, commit to last slot idle, p95", "ms", Better::Lower, 0.50).demand(150.0);

/// How many workers.
const WORKERS: usize = 2;
/// How many tasks each job has; far more than are run.
const TASKS: u64 = 1_000_000;
/// What a task takes, in µs, on a core of its own.
const TASK_MICROS: u32 = 2_000;
/// The task that ends a job is one of these.
const TARGETS: std::ops::Range<u64> = 200..2_000;
/// How often the workers' diaries are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After so many looks at which nobody works, nobody will.
const QUIET_LOOKS: u32 = 8;

impl Bench {
    /// As many jobs as the scale says, one after the other.
    pub(crate) async fn early_stop(&mut self) -> Outcome<()> {
        let paths: Vec<PathBuf> = (0..WORKERS).map(|n| self.site.dir().join(format!("diary-{n}"))).collect();
        let fleet = Fleet::start_own(&self.site, &paths).await?;
        let diaries = paths.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
        let spin = Spin { tasks: TASKS, work: Work::micros(TASK_MICROS), ..Spin::default() };
        let spec = serde_json::to_string(&spin)?;
        let mut waits = Vec::new();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..self.scale.stops {
            let target = random.u64(TARGETS).to_string();
            let done = fleet.run(&["hunt", "--spec", &spec, "--target", &target]).await?;
            let last_us = idle_since(&diaries).await?;
            if done.finished.conclusion.text != target || done.finished.account.skipped == 0 {
                return Err(format!("the search for {target} ended so: {:?}", done.finished).into());
            }
            let view =
                LedgerReader::open(&fleet.ledger())?.job(done.job)?.ok_or("the ledger lost the job")?;
            let committed_us = view.summary.finished_ms.ok_or("the job has not ended")? * 1_000;
            waits.push(last_us.saturating_sub(committed_us) as f64 / 1e3);
        }
        fleet.end().await?;
        self.report.add(&P50, quantile(&waits, 0.5));
        self.report.add(&P95, quantile(&waits, 0.95));
        Ok(())
    }
}

/// When the last task of all workers ended, in µs since 1970, once nobody works any more.
async fn idle_since(diaries: &[File]) -> Outcome<u64> {
    let mut quiet = 0;
    let mut before = Vec::new();
    loop {
        let now = diaries.iter().map(Diary::read).collect::<Result<Vec<_>, _>>()?;
        let idle = now.iter().all(|diary| diary.begun == diary.ended);
        quiet = if idle && now == before { quiet + 1 } else { 0 };
        if quiet == QUIET_LOOKS {
            return Ok(now.iter().map(|diary| diary.last_end_us).max().unwrap_or_default());
        }
        before = now;
        sleep(LOOK_EVERY).await;
    }
}
