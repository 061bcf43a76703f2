//! A fixed amount of work, measured once.

use std::{
    hint::black_box,
    num::ParseIntError,
    ops::RangeInclusive,
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
/// Where it is made it is measured: [`Work::micros`], [`Work::between`] and the command line take about 20 ms for it,
/// unless it is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    micros: u32,
    /// If it is there, the most that a task takes, and `micros` the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    micros_to: Option<u32>,
    #[serde(default)]
    iterations_per_micro: u64,
}

impl Work {
    /// Work for this long, on this machine, undisturbed.
    #[must_use]
    pub fn micros(micros: u32) -> Self {
        Self::measured(micros, None)
    }

    /// Work that takes each task another time within these bounds. The job refuses bounds that are reversed.
    #[must_use]
    pub fn between(micros: RangeInclusive<u32>) -> Self {
        Self::measured(*micros.start(), Some(*micros.end()))
    }

    fn measured(micros: u32, micros_to: Option<u32>) -> Self {
        let none = micros_to.unwrap_or(micros) == 0;
        Self { micros, micros_to, iterations_per_micro: if none { 0 } else { calibrate() } }
    }

    pub(super) fn check(self) -> Result<(), JobError> {
        let Self { micros, micros_to, iterations_per_micro } = self;
        if let Some(to) = micros_to
            && to < micros
        {
            return Err(JobError::new(format!(
                "--micros {micros}..{to}: the range is reversed (hint: did you mean {to}..{micros}?)"
            )));
        }
        let longest = micros_to.unwrap_or(micros);
        if longest > 0 && iterations_per_micro == 0 {
            return Err(JobError::new(format!(
                "{longest} µs of work of 0 iterations per µs (hint: set iterations_per_micro, 500 is usual)"
            )));
        }
        Ok(())
    }

    /// How many µs a task takes for which `draw` was drawn, from all numbers alike: any within the bounds alike.
    pub(super) fn micros_by(self, draw: impl FnOnce() -> u64) -> u32 {
        let Some(to) = self.micros_to else { return self.micros };
        let lengths = u128::from(to.saturating_sub(self.micros)) + 1;
        self.micros + ((u128::from(draw()) * lengths) >> u64::BITS) as u32
    }

    /// Does so many µs of it, all or until the job was stopped.
    pub(super) fn perform(self, micros: u32, cx: &TaskContext) -> Result<(), TaskError> {
        let mut left = u64::from(micros).saturating_mul(self.iterations_per_micro);
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

    /// A number of µs, or two with `..` between them: the least and the most.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        match text.split_once("..") {
            None => text.parse().map(Self::micros),
            Some((least, most)) => Ok(Self::between(least.parse()?..=most.parse()?)),
        }
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
        work.perform(20_000, &context(StopSignal::new())).unwrap();
        let took = start.elapsed();
        assert!(took > Duration::from_millis(10), "{took:?} for {work:?}"); // half: a core's speed may have changed
    }

    #[test]
    fn no_work_is_not_measured() {
        assert_eq!("0".parse(), Ok(Work::default()));
        assert_eq!("0..0".parse(), Ok(Work { micros_to: Some(0), ..Work::default() }));
    }

    #[test]
    fn what_is_no_number_of_microseconds_is_refused() {
        for text in ["", "1.5", "..", "1..", "..5", "1..=5", "1..2..3", "-1", "5000000000"] {
            assert!(text.parse::<Work>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn work_between_two_bounds_takes_any_time_within_them() {
        let work = |least, most| Work { micros: least, micros_to: Some(most), iterations_per_micro: 1 };
        for (draw, micros) in [(0, 5), (u64::MAX / 2 + 1, 7), (u64::MAX, 8)] {
            assert_eq!(work(5, 8).micros_by(|| draw), micros);
        }
        assert_eq!(work(5, 5).micros_by(|| u64::MAX), 5);
        assert_eq!(work(0, u32::MAX).micros_by(|| u64::MAX), u32::MAX);
    }

    #[test]
    fn a_stopped_job_ends_an_hour_of_work() {
        let stop = StopSignal::new();
        stop.stop();
        let work = Work { iterations_per_micro: u64::MAX, ..Work::default() };
        assert_eq!(work.perform(u32::MAX, &context(stop)).unwrap_err().into_trouble(), Trouble::Stopped);
    }
}
