//! Limits of repeated log lines. A limiter decides, and its caller logs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Minimum time between two log lines of one key, unless a caller sets another rule.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Keys that are tracked by default; beyond that the first in their order is forgotten.
const KEYS_MAX: usize = 1_000;

/// The occurrences of a key that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRule {
    /// The first one only.
    Once,
    /// The first, the second, the fourth and so on. A repeated failure is always visible, and a
    /// million equal ones do not fill the log.
    PowersOfTwo,
    /// The first one, and then at most one in this time.
    Interval(Duration),
}

/// A record of what was logged, by key. When it is full, a new key replaces the first of the others
/// in their order, which then counts as new.
#[derive(Debug)]
pub struct LogLimiter<K> {
    rule: LogRule,
    max_keys: usize,
    keys: BTreeMap<K, LogKey>,
}

/// The occurrences of one key.
#[derive(Debug, Default)]
struct LogKey {
    count: u64,
    logged_at: Option<Instant>,
}

impl<K: Ord> Default for LogLimiter<K> {
    /// Creates a limiter that allows one line a minute for each of the last 1,000 keys.
    fn default() -> Self {
        Self::new(LogRule::Interval(LOG_INTERVAL), KEYS_MAX)
    }
}

impl<K: Ord> LogLimiter<K> {
    /// Creates a limiter that tracks at most `max_keys` keys.
    #[must_use]
    pub const fn new(rule: LogRule, max_keys: usize) -> Self {
        Self { rule, max_keys, keys: BTreeMap::new() }
    }

    /// Counts an occurrence of this key. Returns the count if this occurrence is to be logged.
    pub fn count(&mut self, key: K) -> Option<u64> {
        if self.keys.len() >= self.max_keys && !self.keys.contains_key(&key) {
            self.keys.pop_first();
        }
        let LogKey { count, logged_at } = self.keys.entry(key).or_default();
        *count += 1;
        let is_logged = match self.rule {
            LogRule::Once => *count == 1,
            LogRule::PowersOfTwo => count.is_power_of_two(),
            LogRule::Interval(interval) => logged_at.is_none_or(|logged_at| logged_at.elapsed() >= interval),
        };
        if !is_logged {
            return None;
        }
        *logged_at = Some(Instant::now());
        Some(*count)
    }

    /// Returns true if this occurrence of the key is to be logged; counts it.
    pub fn should_log(&mut self, key: K) -> bool {
        self.count(key).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JobId;

    #[test]
    fn repeated_lines_are_limited() {
        let mut log_limiter = LogLimiter::default();
        assert_eq!([1, 2, 1, 2].map(|kind| log_limiter.should_log(kind)), [true, true, false, false]);
        assert!(
            (0..2 * KEYS_MAX)
                .all(|kind| log_limiter.keys.len() <= KEYS_MAX && (log_limiter.should_log(kind) || kind <= 2))
        );
    }

    #[test]
    fn repeated_lines_return_after_the_interval() {
        let mut log_limiter = LogLimiter::new(LogRule::Interval(Duration::ZERO), 1);
        assert!((0..3).all(|_| log_limiter.should_log(())));
        let mut log_limiter = LogLimiter::new(LogRule::Once, 1);
        assert_eq!([1, 1, 2, 1].map(|kind| log_limiter.should_log(kind)), [true, false, true, true]);
    }

    #[test]
    fn failures_are_logged_ever_less() {
        const COUNTED_MAX_JOBS: usize = 64;
        let mut limiter = LogLimiter::new(LogRule::PowersOfTwo, COUNTED_MAX_JOBS);
        let (one, other) = (JobId::generate(), JobId::generate());
        let mut logged = |job, times| (0..times).filter_map(|_| limiter.count(job)).collect::<Vec<_>>();
        assert_eq!(logged(one, 100), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(logged(other, 3), [1, 2]);
        assert_eq!(logged(one, 28), [128]);
        // The latest jobs are counted, and the job that fails now.
        for _ in 0..1_000 {
            logged(JobId::generate(), 1);
        }
        assert_eq!(logged(one, 3), [1, 2]);
        assert_eq!(limiter.keys.len(), COUNTED_MAX_JOBS);
    }
}
