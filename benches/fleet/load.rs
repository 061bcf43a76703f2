//! The load of other programs on this machine during a run, so that the table reveals a
//! disturbance.

use std::{fs, process, thread, time::Instant};

use crate::{
    BenchResult,
    bench_env::BenchEnv,
    usage::{TICKS_PER_SECOND, processor_seconds, processor_seconds_of_children},
};

/// The state at the start of the observation.
#[derive(Debug)]
pub(crate) struct BackgroundLoad {
    start: Instant,
    busy: f64,
    ours: f64,
}

impl BackgroundLoad {
    pub(crate) fn start(env: &BenchEnv) -> BenchResult<Self> {
        Ok(Self { start: Instant::now(), busy: busy_seconds()?, ours: our_seconds(env)? })
    }

    /// Returns the share of all processors that other programs have used since the start. May be
    /// called only after all our processes but the broker have ended: their time is known at their
    /// end.
    pub(crate) fn share_of_others(&self, env: &BenchEnv) -> BenchResult<f64> {
        let all = self.start.elapsed().as_secs_f64() * thread::available_parallelism()?.get() as f64;
        let others = busy_seconds()? - self.busy - (our_seconds(env)? - self.ours);
        Ok((others / all).clamp(0.0, 1.0))
    }
}

/// Returns the processor time of this process, of those that it has waited for, and of the broker.
fn our_seconds(env: &BenchEnv) -> BenchResult<f64> {
    let own = process::id();
    Ok(processor_seconds(own)? + processor_seconds_of_children(own)? + env.broker_seconds()?)
}

/// Returns the time that all processors were busy, or were kept from working by other machines on
/// the same hardware.
fn busy_seconds() -> BenchResult<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks = fields.map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|field| ticks.get(*field));
    Ok(busy.sum::<f64>() / TICKS_PER_SECOND)
}
