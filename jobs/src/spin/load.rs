//! What a task of a spin carries.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The task's index, and a text that only takes room. JSON: `7`, or `[7,"pay…load"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a task is an index, or an index and a payload: 7 or [7,\"text\"]")]
pub enum SpinTask {
    /// Without a payload.
    Bare(u64),
    /// With one.
    Loaded(u64, String),
}

impl SpinTask {
    /// With this many bytes, the same for the same index and seed.
    pub(super) fn new(index: u64, bytes: u32, seed: u64) -> Self {
        match bytes {
            0 => Self::Bare(index),
            _ => Self::Loaded(index, noise(bytes as usize, index, seed)),
        }
    }

    pub(super) fn index(&self) -> u64 {
        match self {
            Self::Bare(index) | Self::Loaded(index, _) => *index,
        }
    }
}

/// Text that needs no escaping in JSON and that compression shortens by a quarter only, as it would shorten real data
/// that was packed before: letters that are all the same would be a load for nobody.
fn noise(bytes: usize, index: u64, seed: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const PER_DRAW: usize = 10; // six bits each
    let mut text = String::with_capacity(bytes + PER_DRAW);
    let seed = xxh3_64_with_seed(&index.to_le_bytes(), seed);
    for at in 0..bytes.div_ceil(PER_DRAW) as u64 {
        let draw = xxh3_64_with_seed(&at.to_le_bytes(), seed);
        text.extend((0..PER_DRAW).map(|letter| char::from(LETTERS[(draw >> (6 * letter)) as usize % 64])));
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_as_small_as_it_can_be() {
        let json = |task| serde_json::to_string(&task).unwrap();
        assert_eq!(json(SpinTask::new(7, 0, 1)), "7");
        for (bytes, size) in [(1, 7), (10, 16), (999, 1005)] {
            let task = SpinTask::new(7, bytes, 1);
            assert_eq!(json(task.clone()).len(), size, "{task:?}");
            assert_eq!(serde_json::from_str::<SpinTask>(&json(task.clone())).unwrap(), task);
        }
    }

    #[test]
    fn payloads_differ_by_index_and_seed_only() {
        let text = |index, seed| SpinTask::new(index, 100, seed);
        assert_eq!(text(1, 1), text(1, 1));
        assert_ne!(noise(100, 1, 1), noise(100, 2, 1));
        assert_ne!(noise(100, 1, 1), noise(100, 1, 2));
    }

    #[test]
    fn what_is_no_task_is_refused_in_clear() {
        let error = serde_json::from_str::<SpinTask>("\"x\"").unwrap_err().to_string();
        assert!(error.starts_with("a task is an index"), "{error}");
    }
}
