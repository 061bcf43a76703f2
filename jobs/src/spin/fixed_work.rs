//! A fixed amount of work, calibrated once.

use std::{
    hint::black_box,
    num::ParseIntError,
    ops::RangeInclusive,
    str::FromStr,
    time::{Duration, Instant},
};

use gristmill_shared::{JobError, TaskContext, TaskError};
use serde::{Deserialize, Serialize};

/// The number of iterations between two checks for a stop: well under a millisecond.
const CHECK_EVERY: u64 = 1 << 16;
/// The number of measurements of the speed. The fastest counts, since disturbances only slow it
/// down.
const ROUND_COUNT: u32 = 10;
/// The approximate time of one measurement.
const ROUND_TIME: Duration = Duration::from_millis(2);

/// An amount of work: microseconds, with the iterations per microsecond of the machine where the
/// job was submitted.
///
/// [`SpinWork::micros`], [`SpinWork::between`] and the command line measure the speed, which takes
/// about 20 ms, unless the work is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpinWork {
    micros: u32,
    /// The longest time of a task, if it is random; `micros` is then the shortest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    micros_to: Option<u32>,
    #[serde(default)]
    iterations_per_micro: u64,
}

impl SpinWork {
    /// Creates work that takes this time on this machine, undisturbed.
    #[must_use]
    pub fn micros(micros: u32) -> Self {
        Self::measure(micros, None)
    }

    /// Creates work that takes each task a random time within these bounds. The job refuses
    /// reversed bounds.
    #[must_use]
    pub fn between(micros: RangeInclusive<u32>) -> Self {
        Self::measure(*micros.start(), Some(*micros.end()))
    }

    fn measure(micros: u32, micros_to: Option<u32>) -> Self {
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

    /// Returns the time of a task in µs, uniform within the bounds if `draw` is uniform over all
    /// numbers.
    pub(super) fn draw_micros(self, draw: impl FnOnce() -> u64) -> u32 {
        let Some(to) = self.micros_to else { return self.micros };
        let lengths = u128::from(to.saturating_sub(self.micros)) + 1;
        self.micros + ((u128::from(draw()) * lengths) >> u64::BITS) as u32
    }

    /// Works for `micros` µs, or until the job is stopped.
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

impl FromStr for SpinWork {
    type Err = ParseIntError;

    /// Parses a number of µs, or two with `..` between them: the least and the most.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        match text.split_once("..") {
            None => text.parse().map(Self::micros),
            Some((least, most)) => Ok(Self::between(least.parse()?..=most.parse()?)),
        }
    }
}

/// Measures the iterations per µs, at least 1.
fn calibrate() -> u64 {
    let mut fastest = 0;
    let mut iterations = CHECK_EVERY;
    for _ in 0..ROUND_COUNT {
        let start = Instant::now();
        iterate(iterations);
        let nanos = start.elapsed().as_nanos().max(1);
        let per = |duration: Duration| u64::try_from(u128::from(iterations) * duration.as_nanos() / nanos);
        fastest = fastest.max(per(Duration::from_micros(1)).unwrap_or(u64::MAX));
        iterations = per(ROUND_TIME).unwrap_or(u64::MAX).clamp(1, 1 << 30);
    }
    fastest.max(1)
}

/// Runs the iterations. Each step needs the result of the previous one, so that no compiler and no
/// core can shorten them.
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
    use gristmill_shared::{FailureKind, JobId, StopSignal, TaskIndex};

    use super::*;

    fn context(stop: StopSignal) -> TaskContext {
        TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop)
    }

    #[test]
    fn work_takes_its_time() {
        let work = SpinWork::micros(20_000);
        let start = Instant::now();
        work.perform(20_000, &context(StopSignal::new())).unwrap();
        let took = start.elapsed();
        assert!(took > Duration::from_millis(10), "{took:?} for {work:?}"); // half: a core's speed may have changed
    }

    #[test]
    fn zero_work_is_not_measured() {
        assert_eq!("0".parse(), Ok(SpinWork::default()));
        assert_eq!("0..0".parse(), Ok(SpinWork { micros_to: Some(0), ..SpinWork::default() }));
    }

    #[test]
    fn bad_micros_are_refused() {
        for text in ["", "1.5", "..", "1..", "..5", "1..=5", "1..2..3", "-1", "5000000000"] {
            assert!(text.parse::<SpinWork>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn work_range_is_inclusive() {
        let work = |least, most| SpinWork { micros: least, micros_to: Some(most), iterations_per_micro: 1 };
        for (draw, micros) in [(0, 5), (u64::MAX / 2 + 1, 7), (u64::MAX, 8)] {
            assert_eq!(work(5, 8).draw_micros(|| draw), micros);
        }
        assert_eq!(work(5, 5).draw_micros(|| u64::MAX), 5);
        assert_eq!(work(0, u32::MAX).draw_micros(|| u64::MAX), u32::MAX);
    }

    #[test]
    fn stop_ends_long_work() {
        let stop = StopSignal::new();
        stop.stop();
        let work = SpinWork { iterations_per_micro: u64::MAX, ..SpinWork::default() };
        assert_eq!(work.perform(u32::MAX, &context(stop)).unwrap_err().into_kind(), FailureKind::Stopped);
    }
}
