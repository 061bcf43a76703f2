//! How long we wait before we try again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The first pause. Each is twice the last up to the longest; jitter adds up to as much again.
const MIN: Duration = Duration::from_millis(50);
/// The longest pause in the first minute or so, when most brokers come back.
const MAX_AT_FIRST: Duration = Duration::from_millis(500);
/// How many pauses are short: those of about a minute.
const SHORT: usize = 80;
/// The longest pause later.
const MAX: Duration = Duration::from_millis(2_500);
/// What holds for so long counts as mended: the pauses begin anew.
pub(crate) const STEADY: Duration = Duration::from_secs(10);

/// Pauses without end: at most 1 s for the first minute, then up to 5 s.
#[derive(Debug)]
pub(crate) struct Pauses {
    short: std::iter::Take<ExponentialBackoff>,
    long: ExponentialBackoff,
}

impl Pauses {
    pub(crate) fn new() -> Self {
        Self { short: backoff(MIN, MAX_AT_FIRST).take(SHORT), long: backoff(MAX_AT_FIRST, MAX) }
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.short.next().or_else(|| self.long.next()).unwrap_or(MAX)
    }
}

fn backoff(min: Duration, max: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_short_for_a_minute_and_bounded_for_ever() {
        let mut pauses = Pauses::new();
        let short: Vec<_> = (0..SHORT).map(|_| pauses.next()).collect();
        assert!(short[0] < Duration::from_millis(150), "{short:?}");
        assert!(short.iter().all(|pause| *pause <= Duration::from_secs(1)), "{short:?}");
        let minute: Duration = short.iter().sum();
        assert!((45..90).contains(&minute.as_secs()), "{minute:?}");
        let long: Vec<_> = (0..1_000).map(|_| pauses.next()).collect();
        assert!(long.iter().all(|pause| *pause <= Duration::from_secs(5)), "{long:?}");
        assert!(long[10] >= MAX, "{long:?}");
    }
}
