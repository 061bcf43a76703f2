//! Whether this worker's batches take long: then it holds no more of them than it can run, since what waits here waits
//! for nobody else, and the time in which a broker wants a delivery settled runs for it too.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

/// Batches that take this long, on average, are long.
pub(crate) const LONG: Duration = Duration::from_secs(1);
/// And they are so until they take no longer than this.
const SHORT: Duration = Duration::from_millis(100);
/// How much the newest batch counts in the average.
const WEIGHT: f64 = 0.25;

#[derive(Debug)]
pub(crate) struct Pace {
    mean_seconds: Mutex<f64>,
    long: watch::Sender<bool>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { mean_seconds: Mutex::new(0.0), long: watch::Sender::new(false) }
    }

    /// A batch took so long.
    pub(crate) fn note(&self, took: Duration) {
        let mut mean = self.mean_seconds.lock().unwrap_or_else(PoisonError::into_inner);
        *mean += (took.as_secs_f64() - *mean) * WEIGHT;
        if *mean >= LONG.as_secs_f64() {
            self.set(true);
        } else if *mean <= SHORT.as_secs_f64() {
            self.set(false);
        }
    }

    /// A delivery has waited for a slot for [`LONG`], whatever those take that have ended.
    pub(crate) fn held_up(&self) {
        let mut mean = self.mean_seconds.lock().unwrap_or_else(PoisonError::into_inner);
        *mean = mean.max(LONG.as_secs_f64());
        self.set(true);
    }

    pub(crate) fn is_long(&self) -> bool {
        *self.long.borrow()
    }

    /// Waits until batches are long, or no longer are.
    pub(crate) async fn becomes(&self, long: bool) {
        let _ = self.long.subscribe().wait_for(|now| *now == long).await; // the sender is here
    }

    fn set(&self, long: bool) {
        self.long.send_if_modified(|now| std::mem::replace(now, long) != long);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_slow_to_change_its_mind() {
        let pace = Pace::new();
        pace.note(Duration::from_secs(2));
        assert!(!pace.is_long(), "one long batch among many");
        for _ in 0..10 {
            pace.note(Duration::from_secs(2));
        }
        assert!(pace.is_long());
        for _ in 0..20 {
            pace.note(Duration::from_millis(500));
        }
        assert!(pace.is_long(), "between the two nothing changes");
        for _ in 0..20 {
            pace.note(Duration::from_millis(50));
        }
        assert!(!pace.is_long());
        pace.held_up();
        assert!(pace.is_long());
        pace.note(Duration::from_millis(50));
        assert!(pace.is_long(), "one short batch after a long wait");
    }
}
