//! The task of a spin, with its payload.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The task's index, with a payload that has no meaning. JSON: `7`, or `[7,"pay…load"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a task is an index, or an index and a payload: 7 or [7,\"text\"]")]
pub enum SpinTask {
    /// Without a payload.
    Bare(u64),
    /// With a payload.
    Loaded(u64, String),
}

impl SpinTask {
    /// Creates a task with a payload of this many bytes, a function of index and seed.
    pub(super) fn new(index: u64, bytes: u32, seed: u64) -> Self {
        match bytes {
            0 => Self::Bare(index),
            _ => Self::Loaded(index, random_text(bytes as usize, index, seed)),
        }
    }

    pub(super) fn index(&self) -> u64 {
        match self {
            Self::Bare(index) | Self::Loaded(index, _) => *index,
        }
    }
}

/// Returns a text that needs no escaping in JSON and that compression shortens by only a quarter,
/// like real data that was compressed before. Equal letters would be an unrealistically light load.
fn random_text(bytes: usize, index: u64, seed: u64) -> String {
    const PAYLOAD_LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const PER_DRAW: usize = 10; // six bits each
    let mut text = String::with_capacity(bytes + PER_DRAW);
    let seed = xxh3_64_with_seed(&index.to_le_bytes(), seed);
    for at in 0..bytes.div_ceil(PER_DRAW) as u64 {
        let draw = xxh3_64_with_seed(&at.to_le_bytes(), seed);
        text.extend(
            (0..PER_DRAW).map(|letter| char::from(PAYLOAD_LETTERS[(draw >> (6 * letter)) as usize % 64])),
        );
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_encoding_is_minimal() {
        let json = |task| serde_json::to_string(&task).unwrap();
        assert_eq!(json(SpinTask::new(7, 0, 1)), "7");
        for (bytes, size) in [(1, 7), (10, 16), (999, 1005)] {
            let task = SpinTask::new(7, bytes, 1);
            assert_eq!(json(task.clone()).len(), size, "{task:?}");
            assert_eq!(serde_json::from_str::<SpinTask>(&json(task.clone())).unwrap(), task);
        }
    }

    #[test]
    fn payloads_follow_index_and_seed() {
        let text = |index, seed| SpinTask::new(index, 100, seed);
        assert_eq!(text(1, 1), text(1, 1));
        assert_ne!(random_text(100, 1, 1), random_text(100, 2, 1));
        assert_ne!(random_text(100, 1, 1), random_text(100, 1, 2));
    }

    #[test]
    fn bad_task_is_refused() {
        let error = serde_json::from_str::<SpinTask>("\"x\"").unwrap_err().to_string();
        assert!(error.starts_with("a task is an index"), "{error}");
    }
}
