//! What others do on this machine while we measure: a table that was disturbed should say so.

use std::{fs, process, thread, time::Instant};

use crate::{
    Outcome,
    bench_env::Site,
    usage::{TICKS_PER_SECOND, processor_seconds, processor_seconds_of_children},
};

/// Since when others are watched.
#[derive(Debug)]
pub(crate) struct Load {
    start: Instant,
    busy: f64,
    ours: f64,
}

impl Load {
    pub(crate) fn begin(site: &Site) -> Outcome<Self> {
        Ok(Self { start: Instant::now(), busy: busy_seconds()?, ours: our_seconds(site)? })
    }

    /// The share of all processors that others have used since then. Only once our processes but the broker have ended:
    /// what those use is known at their end.
    pub(crate) fn of_others(&self, site: &Site) -> Outcome<f64> {
        let all = self.start.elapsed().as_secs_f64() * thread::available_parallelism()?.get() as f64;
        let others = busy_seconds()? - self.busy - (our_seconds(site)? - self.ours);
        Ok((others / all).clamp(0.0, 1.0))
    }
}

/// This process, what it has started and waited for, and the broker.
fn our_seconds(site: &Site) -> Outcome<f64> {
    let own = process::id();
    Ok(processor_seconds(own)? + processor_seconds_of_children(own)? + site.broker_seconds()?)
}

/// What all processors have worked, or were kept from working by other machines on the same hardware.
fn busy_seconds() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks = fields.map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|place| ticks.get(*place));
    Ok(busy.sum::<f64>() / TICKS_PER_SECOND)
}
