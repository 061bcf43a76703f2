//! A flood of the same trouble is one line in the log.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// The same trouble is told this often at most.
const EVERY: Duration = Duration::from_secs(60);
/// How many kinds of trouble are told apart; beyond that the memory of them begins anew.
const MAX_KINDS: usize = 1_000;

/// Remembers what was told lately.
#[derive(Debug)]
pub(super) struct Seldom<K>(HashMap<K, Instant>);

impl<K> Default for Seldom<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Whether this is to be told now.
    pub(super) fn is_due(&mut self, kind: K) -> bool {
        let now = Instant::now();
        if self.0.get(&kind).is_some_and(|told| now.duration_since(*told) < EVERY) {
            return false;
        }
        if self.0.len() >= MAX_KINDS {
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
    fn the_same_is_told_once_in_a_while() {
        let mut seldom = Seldom::default();
        assert_eq!([1, 2, 1, 2].map(|kind| seldom.is_due(kind)), [true, true, false, false]);
        assert!(
            (0..2 * MAX_KINDS).all(|kind| seldom.0.len() <= MAX_KINDS && (seldom.is_due(kind) || kind <= 2))
        );
    }
}
