//! Delays between attempts to connect.

use std::time::Duration;

use gristmill_shared::Backoff;

/// The first delay. Each one doubles up to the maximum; jitter adds up to as much again.
const DELAY_MIN: Duration = Duration::from_millis(50);
/// The longest delay in about the first minute, when most brokers return.
const SHORT_DELAY_MAX: Duration = Duration::from_millis(500);
/// Number of short delays: about a minute's worth.
const SHORT_DELAY_COUNT: usize = 80;
/// The longest delay later.
const DELAY_MAX: Duration = Duration::from_millis(2_500);
/// Uptime after which the delays start from the first one again.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(10);

/// An endless series of delays: at most 1 s for the first minute, then up to 5 s.
#[derive(Debug)]
pub(crate) struct ReconnectBackoff {
    short: Backoff,
    short_left: usize,
    long: Backoff,
}

impl ReconnectBackoff {
    pub(crate) fn new() -> Self {
        Self {
            short: Backoff::jittered(DELAY_MIN, SHORT_DELAY_MAX),
            short_left: SHORT_DELAY_COUNT,
            long: Backoff::jittered(SHORT_DELAY_MAX, DELAY_MAX),
        }
    }

    pub(crate) fn next_delay(&mut self) -> Duration {
        match self.short_left.checked_sub(1) {
            Some(left) => {
                self.short_left = left;
                self.short.next_pause()
            }
            None => self.long.next_pause(),
        }
    }

    /// Starts again from the first delay if a connection or subscription was up long enough.
    pub(crate) fn reset_after(&mut self, uptime: Duration) {
        if uptime >= BACKOFF_RESET_AFTER {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Later delays are bounded too.
    #[test]
    fn delays_are_short_for_a_minute() {
        let mut backoff = ReconnectBackoff::new();
        let short: Vec<_> = (0..SHORT_DELAY_COUNT).map(|_| backoff.next_delay()).collect();
        assert!(short[0] < Duration::from_millis(150), "{short:?}");
        assert!(short.iter().all(|pause| *pause <= Duration::from_secs(1)), "{short:?}");
        let minute: Duration = short.iter().sum();
        assert!((45..90).contains(&minute.as_secs()), "{minute:?}");
        let long: Vec<_> = (0..1_000).map(|_| backoff.next_delay()).collect();
        assert!(long.iter().all(|pause| *pause <= Duration::from_secs(5)), "{long:?}");
        assert!(long[10] >= DELAY_MAX, "{long:?}");
    }
}
