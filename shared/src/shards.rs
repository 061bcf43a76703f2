//! The shards of a lane: its task queues.

use std::{fmt, num::NonZeroU8, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::QueueRole;

/// The most task queues that a lane may have. Each costs the broker a process and every worker a
/// channel, and one queue alone carries thousands of messages a second.
pub const SHARDS_MAX: u8 = 64;

/// The number of task queues of a lane, 1 to [`SHARDS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Shards(NonZeroU8);

/// The number of a shard after the first: 2 to [`SHARDS_MAX`]. [`Shards::queues`] returns them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardIndex(NonZeroU8);

/// The error for a number of shards that is out of bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a number of shards from 1 to {SHARDS_MAX}")]
pub struct InvalidShards;

impl Shards {
    /// One shard: the tasks queue that every lane has.
    pub const ONE: Self = Self(NonZeroU8::MIN);

    /// Makes a number of shards.
    ///
    /// # Errors
    /// If `number` is 0 or above [`SHARDS_MAX`].
    pub fn new(number: u8) -> Result<Self, InvalidShards> {
        NonZeroU8::new(number).filter(|number| number.get() <= SHARDS_MAX).map(Self).ok_or(InvalidShards)
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// Returns the next larger number, or `None` at [`SHARDS_MAX`].
    #[must_use]
    pub fn checked_next(self) -> Option<Self> {
        self.0.checked_add(1).and_then(|number| Self::new(number.get()).ok())
    }

    /// Returns the role of the last of these queues.
    #[must_use]
    pub fn last(self) -> QueueRole {
        if self == Self::ONE { QueueRole::Tasks } else { QueueRole::Shard(ShardIndex(self.0)) }
    }

    /// Returns the roles of all these queues, from the first on.
    pub fn queues(self) -> impl Iterator<Item = QueueRole> + Clone {
        (1..=self.get()).filter_map(|number| Some(Self(NonZeroU8::new(number)?).last()))
    }
}

impl Default for Shards {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u8> for Shards {
    type Error = InvalidShards;

    fn try_from(number: u8) -> Result<Self, InvalidShards> {
        Self::new(number)
    }
}

impl From<Shards> for u8 {
    fn from(shards: Shards) -> Self {
        shards.get()
    }
}

impl FromStr for Shards {
    type Err = InvalidShards;

    fn from_str(text: &str) -> Result<Self, InvalidShards> {
        text.parse().map_err(|_| InvalidShards).and_then(Self::new)
    }
}

impl fmt::Display for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lane;

    /// The first shard is the queue that every lane has; further shards have numbers.
    #[test]
    fn further_shards_have_numbers() {
        let names: Vec<_> =
            Shards::new(3).unwrap().queues().map(|queue| queue.of(&Lane::default()).to_string()).collect();
        assert_eq!(
            names,
            ["gristmill.default.tasks", "gristmill.default.tasks.2", "gristmill.default.tasks.3"]
        );
        assert_eq!(Shards::ONE.queues().collect::<Vec<_>>(), [QueueRole::Tasks]);
    }

    #[test]
    fn shards_are_1_to_64() {
        for (text, number) in [("1", Some(1)), ("64", Some(64)), ("0", None), ("65", None), ("many", None)] {
            assert_eq!(text.parse::<Shards>().ok().map(Shards::get), number, "{text}");
        }
        assert!(serde_json::from_str::<Shards>("65").is_err());
        assert_eq!(Shards::new(SHARDS_MAX).unwrap().checked_next(), None);
        assert_eq!(Shards::ONE.checked_next(), Shards::new(2).ok());
    }
}
