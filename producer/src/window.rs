//! How much may be on its way to the broker at a time: more while it takes everything, half when it refuses.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The most batches that wait for the broker's answer. The backlog of a lane is bounded by the limits of its tasks
/// queue plus this, for each producer.
pub(crate) const WINDOW_MAX_BATCHES: usize = 256;
/// The most bytes that wait for the broker's answer; a single larger batch goes alone.
pub(crate) const WINDOW_MAX_BYTES: usize = 2 << 20;
/// How many batches may be on their way at the start.
const WINDOW_START: f64 = 16.0;
/// The first pause after the broker refused.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause while it keeps refusing.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Additive increase, multiplicative decrease; until the broker refuses for the first time, twice as much every round.
#[derive(Debug)]
pub(crate) struct Window {
    size: f64,
    was_refused: bool,
    pauses: ExponentialBackoff,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { size: WINDOW_START, was_refused: false, pauses: pauses() }
    }

    /// Whether one more message of `bytes` may go, while `messages` of `total` bytes are on their way.
    pub(crate) fn has_room(&self, messages: usize, total: usize, bytes: usize) -> bool {
        messages == 0 || ((messages as f64) < self.size && total + bytes <= WINDOW_MAX_BYTES)
    }

    /// The broker took a batch.
    pub(crate) fn stored(&mut self) {
        let more = if self.was_refused { 1.0 / self.size } else { 1.0 };
        self.size = (self.size + more).min(WINDOW_MAX_BATCHES as f64);
        self.pauses = pauses();
    }

    /// The broker refused a batch: how long to leave it alone.
    pub(crate) fn refused(&mut self) -> Duration {
        self.size = (self.size / 2.0).max(1.0);
        self.was_refused = true;
        self.pauses.next().unwrap_or(PAUSE_MAX)
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_until_it_is_refused_then_halves_and_grows_by_one_a_round() {
        let mut window = Window::new();
        for _ in 0..16 {
            window.stored();
        }
        assert_eq!(window.size, 32.0);
        window.refused();
        assert_eq!(window.size, 16.0);
        for _ in 0..17 {
            window.stored();
        }
        assert!((16.9..17.1).contains(&window.size), "{}", window.size);
        window.refused();
        assert!(window.size < 8.6);
        for _ in 0..20 {
            assert!(window.refused() <= PAUSE_MAX * 2); // with jitter
        }
        assert!(window.has_room(0, 0, WINDOW_MAX_BYTES * 2), "a large batch goes alone");
        assert!(!window.has_room(1, 1, 1), "one at a time after many refusals");
    }
}
