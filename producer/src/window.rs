//! The window of unconfirmed batches. It grows while the broker stores all of them and halves when
//! the broker rejects one.

use std::time::Duration;

use gristmill_shared::Backoff;

/// The most unconfirmed batches. The backlog of a lane is bounded by the limits of its tasks queue
/// plus this number for each producer.
pub(crate) const WINDOW_MAX_BATCHES: usize = 256;
/// The most unconfirmed bytes. A single larger batch is sent alone.
pub(crate) const WINDOW_MAX_BYTES: usize = 2 << 20;
/// The size of the window at the start, in batches.
const WINDOW_START_BATCHES: f64 = 16.0;
/// The first pause after a rejection.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause while the broker keeps rejecting.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A window with additive increase and multiplicative decrease. Until the first rejection it
/// doubles every round.
#[derive(Debug)]
pub(crate) struct Window {
    size: f64,
    was_refused: bool,
    backoff: Backoff,
}

impl Window {
    pub(crate) fn new() -> Self {
        let backoff = Backoff::jittered(PAUSE_MIN, PAUSE_MAX);
        Self { size: WINDOW_START_BATCHES, was_refused: false, backoff }
    }

    /// Returns true if a message of `bytes` may be sent while `messages` of `total` bytes are
    /// unconfirmed.
    pub(crate) fn has_room(&self, messages: usize, total: usize, bytes: usize) -> bool {
        messages == 0 || ((messages as f64) < self.size && total + bytes <= WINDOW_MAX_BYTES)
    }

    /// Records that the broker stored a batch.
    pub(crate) fn grow(&mut self) {
        let more = if self.was_refused { 1.0 / self.size } else { 1.0 };
        self.size = (self.size + more).min(WINDOW_MAX_BATCHES as f64);
        self.backoff.reset();
    }

    /// Records that the broker rejected batches. Returns how long to pause.
    pub(crate) fn shrink(&mut self) -> Duration {
        self.size = (self.size / 2.0).max(1.0);
        self.was_refused = true;
        self.backoff.next_pause()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window doubles until the first rejection, then halves at each and grows by one a round.
    #[test]
    fn window_doubles_then_halves() {
        let mut window = Window::new();
        for _ in 0..16 {
            window.grow();
        }
        assert_eq!(window.size, 32.0);
        window.shrink();
        assert_eq!(window.size, 16.0);
        for _ in 0..17 {
            window.grow();
        }
        assert!((16.9..17.1).contains(&window.size), "{}", window.size);
        window.shrink();
        assert!(window.size < 8.6);
        for _ in 0..20 {
            assert!(window.shrink() <= PAUSE_MAX * 2); // with jitter
        }
        assert!(window.has_room(0, 0, WINDOW_MAX_BYTES * 2), "a large batch goes alone");
        assert!(!window.has_room(1, 1, 1), "one at a time after many refusals");
    }
}
