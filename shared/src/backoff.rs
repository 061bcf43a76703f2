//! Pauses between attempts, each twice as long as the one before.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// An endless series of pauses that double from a shortest to a longest one.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    max: Duration,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// Creates a series from `min` to `max`.
    #[must_use]
    pub fn exact(min: Duration, max: Duration) -> Self {
        Self::from_builder(ExponentialBuilder::new(), min, max)
    }

    /// Creates a series from `min` to `max` in which jitter adds up to as much again to each pause,
    /// so that clients that failed together do not try again together.
    #[must_use]
    pub fn jittered(min: Duration, max: Duration) -> Self {
        Self::from_builder(ExponentialBuilder::new().with_jitter(), min, max)
    }

    fn from_builder(builder: ExponentialBuilder, min: Duration, max: Duration) -> Self {
        let builder = builder.with_min_delay(min).with_max_delay(max).without_max_times();
        Self { builder, max, pauses: builder.build() }
    }

    /// Returns the next pause.
    pub fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.max)
    }

    /// Starts the series again from its shortest pause.
    pub fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let [min, max] = [1, 10].map(Duration::from_secs);
        let mut exact = Backoff::exact(min, max);
        let mut jittered = Backoff::jittered(min, max);
        for _ in 0..2 {
            for expected in [1, 2, 4, 8, 10, 10].map(Duration::from_secs) {
                assert_eq!(exact.next_pause(), expected);
                let pause = jittered.next_pause();
                assert!((expected..=2 * expected).contains(&pause), "{pause:?}");
            }
            exact.reset();
            jittered.reset();
        }
    }
}
