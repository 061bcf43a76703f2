//! A fixed amount of work, measured once.

use std::{
    hint::black_box,
    num::ParseIntError,
    str::FromStr,
    time::{Duration, Instant},
};

use gristmill_shared::{JobError, TaskContext, TaskError};
use serde::{Deserialize, Serialize};

/// Iterations between two looks at whether the job was stopped: well under a millisecond.
const CHECK_EVERY: u64 = 1 << 16;
/// How often the speed is measured, each time for about [`ROUND`]; the fastest counts, since what disturbs only slows.
const ROUNDS: u32 = 10;
const ROUND: Duration = Duration::from_millis(2);

/// So many iterations that they took the machine where the job was submitted so many microseconds.
///
/// Where it is made it is measured: [`Work::micros`] and the command line take about 20 ms for it, unless it is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    micros: u32,
    #[serde(default)]
    iterations_per_micro: u64,
}

impl Work {
    /// Work for this long, on this machine, undisturbed.
    #[must_use]
    pub fn micros(micros: u32) -> Self {
        Self { micros, iterations_per_micro: if micros == 0 { 0 } else { calibrate() } }
    }

    pub(super) fn check(self) -> Result<(), JobError> {
        match self {
            Self { micros: 1.., iterations_per_micro: 0 } => Err(JobError::new(format!(
                "{} µs of work of 0 iterations per µs (hint: set iterations_per_micro, 500 is usual)",
                self.micros
            ))),
            _ => Ok(()),
        }
    }

    /// Does it, all or until the job was stopped.
    pub(super) fn perform(self, cx: &TaskContext) -> Result<(), TaskError> {
        let mut left = u64::from(self.micros).saturating_mul(self.iterations_per_micro);
        while left > 0 {
            cx.check()?;
            let some = left.min(CHECK_EVERY);
            iterate(some);
            left -= some;
        }
        Ok(())
    }
}

impl FromStr for Work {
    type Err = ParseIntError;

    /// A number of µs.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self::micros)
    }
}

/// Iterations per µs, at least 1.
fn calibrate() -> u64 {
    let mut fastest = 0;
    let mut iterations = CHECK_EVERY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        iterate(iterations);
        let nanos = start.elapsed().as_nanos().max(1);
        let per = |duration: Duration| u64::try_from(u128::from(iterations) * duration.as_nanos() / nanos);
        fastest = fastest.max(per(Duration::from_micros(1)).unwrap_or(u64::MAX));
        iterations = per(ROUND).unwrap_or(u64::MAX).clamp(1, 1 << 30);
    }
    fastest.max(1)
}

/// The work itself: each step needs the one before, so that no compiler and no core can shorten it.
#[inline(never)]
fn iterate(iterations: u64) {
    let mut state = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..iterations {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17; // Marsaglia's xorshift64
    }
    black_box(state);
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{JobId, StopSignal, TaskIndex, Trouble};

    use super::*;

    fn context(stop: StopSignal) -> TaskContext {
        TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop)
    }

    #[test]
    fn work_takes_the_time_it_was_measured_for_or_longer() {
        let work = Work::micros(20_000);
        let start = Instant::now();
        work.perform(&context(StopSignal::new())).unwrap();
        let took = start.elapsed();
        assert!(took > Duration::from_millis(10), "{took:?} for {work:?}"); // half: a core's speed may have changed
    }

    #[test]
    fn no_work_is_not_measured() {
        assert_eq!("0".parse(), Ok(Work::default()));
        assert!("1.5".parse::<Work>().is_err());
    }

    #[test]
    fn a_stopped_job_ends_an_hour_of_work() {
        let stop = StopSignal::new();
        stop.stop();
        let work = Work { micros: u32::MAX, iterations_per_micro: u64::MAX };
        assert_eq!(work.perform(&context(stop)).unwrap_err().into_trouble(), Trouble::Stopped);
    }
}
