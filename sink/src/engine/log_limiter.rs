//! Rate limit of repeated log lines.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Minimum time between two log lines of one key.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Keys that are tracked; beyond that the record is cleared.
const KEYS_MAX: usize = 1_000;

/// The time of the last log line of each key.
#[derive(Debug)]
pub(crate) struct LogLimiter<K>(HashMap<K, Instant>);

impl<K> Default for LogLimiter<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> LogLimiter<K> {
    /// True if a line of this key should be logged now; counts it as logged.
    pub(crate) fn should_log(&mut self, kind: K) -> bool {
        let now = Instant::now();
        if self.0.get(&kind).is_some_and(|told| now.duration_since(*told) < LOG_INTERVAL) {
            return false;
        }
        if self.0.len() >= KEYS_MAX {
            self.0.clear();
        }
        self.0.insert(kind, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_limited() {
        let mut log_limiter = LogLimiter::default();
        assert_eq!([1, 2, 1, 2].map(|kind| log_limiter.should_log(kind)), [true, true, false, false]);
        assert!(
            (0..2 * KEYS_MAX)
                .all(|kind| log_limiter.0.len() <= KEYS_MAX && (log_limiter.should_log(kind) || kind <= 2))
        );
    }
}
