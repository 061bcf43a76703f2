//! The digest of a split: two splits with the same digest gave the same tasks in the same order.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::TaskIndex;

/// A running digest of a job's tasks.
///
/// The sum (modulo 2⁶⁴) of the XXH3 hash of each encoded task, seeded with its index. It can be
/// saved and resumed after any task. It tells a changed split from an unchanged one; it does not
/// protect against an attacker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SplitDigest(u64);

impl SplitDigest {
    /// Adds the next task.
    pub(crate) fn add(&mut self, index: TaskIndex, task: &[u8]) {
        self.0 = self.0.wrapping_add(xxh3_64_with_seed(task, index.0));
    }
}

impl fmt::Display for SplitDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xxh3:{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(tasks: &[&str]) -> SplitDigest {
        let mut digest = SplitDigest::default();
        for (index, task) in (0..).zip(tasks) {
            digest.add(TaskIndex(index), task.as_bytes());
        }
        digest
    }

    #[test]
    fn order_and_content_matter() {
        assert_eq!(digest(&["1", "2"]), digest(&["1", "2"]));
        assert_ne!(digest(&["1", "2"]), digest(&["2", "1"]));
        assert_ne!(digest(&["1", "2"]), digest(&["1"]));
        assert_ne!(digest(&["1", "1"]), digest(&["1"]));
    }
}
