//! Identities as distinct types, so that a round cannot be passed in place of an index.

use std::{fmt, io, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

/// The identity of one submission of a job. UUID version 7: ids sort by the time of submission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct JobId(Uuid);

impl TryFrom<Uuid> for JobId {
    type Error = InvalidName;
    fn try_from(id: Uuid) -> Result<Self, InvalidName> {
        id.hyphenated().to_string().parse()
    }
}

impl From<JobId> for Uuid {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl JobId {
    /// Generates a new id, unique everywhere.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match Uuid::try_parse(text) {
            Ok(id) if id.get_version_num() == 7 => Ok(Self(id)),
            _ => Err(InvalidName { what: "job id", got: text.into(), expected: "a UUID of version 7" }),
        }
    }
}

/// A task's place in its job: 0, 1, 2, … in the order of the split.
///
/// On the wire it is below [`TaskIndex::LIMIT`], because many JSON readers round larger numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct TaskIndex(pub u64);

impl TryFrom<u64> for TaskIndex {
    type Error = InvalidName;
    fn try_from(index: u64) -> Result<Self, InvalidName> {
        if index < Self::LIMIT {
            return Ok(Self(index));
        }
        Err(InvalidName { what: "task index", got: index.to_string(), expected: "less than 2^53" })
    }
}

impl From<TaskIndex> for u64 {
    fn from(index: TaskIndex) -> Self {
        index.0
    }
}

impl TaskIndex {
    /// The exclusive upper bound of an index on the wire, and the most tasks of a job: 2⁵³.
    pub const LIMIT: u64 = 1 << 53;

    /// Returns the index `tasks` further on; saturates at `u64::MAX`.
    #[must_use]
    pub const fn plus(self, tasks: u64) -> Self {
        Self(self.0.saturating_add(tasks))
    }
}

impl fmt::Display for TaskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The round of a job: 0 at first, and one more each time its failed tasks are sent again.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round(pub u32);

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $Name:ident, $what:literal, $expected:literal, $max:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $Name(Arc<str>);

        impl $Name {
            /// Makes a name after a check of its characters and length.
            ///
            /// # Errors
            /// [`InvalidName`] with the expected form.
            pub fn new(text: &str) -> Result<Self, InvalidName> {
                let allowed: fn(char) -> bool = $allowed;
                if text.is_empty() || text.len() > $max || !text.chars().all(allowed) {
                    return Err(InvalidName { what: $what, got: text.into(), expected: $expected });
                }
                Ok(Self(text.into()))
            }

            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $Name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $Name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(&text)
            }
        }

        impl From<$Name> for String {
            fn from(name: $Name) -> Self {
                name.0.as_ref().into()
            }
        }
    };
}

name_type!(
    /// The stable name of a job type on the wire, independent of the Rust type's name.
    Kind,
    "kind",
    "1 to 63 of a-z, 0-9 and '-'",
    63,
    |c| matches!(c, 'a'..='z' | '0'..='9' | '-')
);

name_type!(
    /// A named set of queues that a fleet of workers serves.
    Lane,
    "lane",
    "1 to 63 of a-z, 0-9, '-' and '_'",
    63,
    |c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_')
);

impl Default for Lane {
    /// The lane `default`.
    fn default() -> Self {
        Self("default".into())
    }
}

name_type!(
    /// The identity of one process of a fleet in results, events and failures.
    WorkerId,
    "worker id",
    "1 to 120 of letters, digits, '-' and '_'",
    120,
    |c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_')
);

impl WorkerId {
    /// Generates an id that no other process has: `HOST-PID-RANDOM`. Characters of `host` that an
    /// id may not contain become `-`.
    #[must_use]
    pub fn generate(host: &str) -> Self {
        let host: String =
            host.chars().take(63).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let id = Uuid::now_v7().simple().to_string(); // its end is random
        Self(format!("{host}-{}-{}", std::process::id(), &id[26..]).into())
    }
}

name_type!(
    /// The identity of a ledger: two sinks with different ledgers must not serve one lane.
    LedgerId,
    "ledger id",
    "1 to 63 of a-z, 0-9 and '-'",
    63,
    |c| matches!(c, 'a'..='z' | '0'..='9' | '-')
);

impl LedgerId {
    /// Generates a new id, unique everywhere.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

name_type!(
    /// The identity of a build of a program: executables with different bytes have different ids.
    BuildId,
    "build id",
    "1 to 63 of a-z, 0-9 and '-'",
    63,
    |c| matches!(c, 'a'..='z' | '0'..='9' | '-')
);

impl BuildId {
    /// Returns the id of an executable: the XXH3 of its bytes, as 16 hexadecimal digits. Reads the
    /// whole file and blocks.
    ///
    /// # Errors
    /// If the executable cannot be read.
    pub fn from_executable(mut executable: impl io::Read) -> io::Result<Self> {
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match executable.read(&mut buffer) {
                Ok(0) => return Ok(Self(format!("{:016x}", hash.digest()).into())),
                Ok(bytes) => hash.update(&buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The error for a text that is no valid name or id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is not a {what} (hint: expected {expected})")]
pub struct InvalidName {
    /// The kind of name or id.
    pub what: &'static str,
    /// The given text.
    pub got: String,
    /// The allowed form.
    pub expected: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_queue_names_and_routing_keys() {
        assert!(Lane::new("night-shift_2").is_ok());
        for bad in ["", "a.b", "A", "ä", "a b", "*", &"x".repeat(64)] {
            assert!(Lane::new(bad).is_err(), "{bad:?} passed");
        }
        assert!(serde_json::from_str::<Kind>("\"no/kind\"").is_err());
    }

    #[test]
    fn job_ids_round_trip_and_sort_by_time() {
        let (first, second) = (JobId::generate(), JobId::generate());
        assert!(first < second);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert!("no-id".parse::<JobId>().unwrap_err().to_string().contains("a UUID"));
    }

    #[test]
    fn index_fits_a_json_number() {
        assert_eq!(
            serde_json::from_str::<TaskIndex>("9007199254740991").unwrap(),
            TaskIndex(TaskIndex::LIMIT - 1)
        );
        assert!(serde_json::from_str::<TaskIndex>("9007199254740992").is_err());
        assert!(
            serde_json::from_str::<JobId>("\"8c5a5c54-1f5c-4d3a-9b0a-6b1f0a5c1d2e\"").is_err(),
            "version 4"
        );
    }

    #[test]
    fn build_id_follows_every_byte() {
        let program = vec![7; (2 << 20) + 3];
        let id = BuildId::from_executable(&program[..]).unwrap();
        assert_eq!(BuildId::new(id.as_str()).as_ref(), Ok(&id));
        assert_eq!(BuildId::from_executable(&program[..]).unwrap(), id);
        for place in [0, 1 << 20, program.len() - 1] {
            let mut other = program.clone();
            other[place] = 8;
            assert_ne!(BuildId::from_executable(&other[..]).unwrap(), id, "byte {place}");
        }
    }

    #[test]
    fn worker_id_accepts_any_host_name() {
        let id = WorkerId::generate("my.host.lan");
        assert!(WorkerId::new(id.as_str()).is_ok(), "{id}");
    }
}
