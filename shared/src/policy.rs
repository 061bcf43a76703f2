//! The policy of a job: the treatment of failed tasks, and the part that the ledger keeps. It
//! travels in every batch, so that all workers treat a job alike.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Keep, RetryDelay};

/// The default number of attempts of a task.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// The most delays that a policy may list. The last one repeats, so more would hardly be reached.
pub const RETRY_DELAYS_MAX: usize = 16;

/// The longest wait before a retry; a longer delay is reduced to it. At 10 min for each step of the
/// retry ladder this takes 144 messages.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The treatment of a job's failed tasks, and the part of the job that the ledger keeps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// The number of failed attempts after which a task has failed for good. At least 1. Defaults
    /// to [`DEFAULT_MAX_ATTEMPTS`].
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// The time limit of one task, in milliseconds; `TaskContext::check` enforces it. Defaults to
    /// no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_timeout_ms: Option<u64>,
    /// The number of failed tasks that ends the job early. Defaults to no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_fast: Option<FailFast>,
    /// True if only workers of the submitter's build may run the tasks. Defaults to any build of
    /// the job's version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_build: bool,
    /// The waits before the second, third, ... attempt, in milliseconds; the last one repeats. At
    /// most [`RETRY_DELAYS_MAX`], each from 1 s to [`RETRY_DELAY_MAX`]. Defaults to none, which
    /// means the retry ladder: 1 s, 10 s, 1 min, 10 min.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retry_delays_ms: Vec<u64>,
    /// The part of the job that the ledger keeps. Defaults to
    /// [`Job::keep`](crate::Job::keep).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

fn default_max_attempts() -> u32 {
    DEFAULT_MAX_ATTEMPTS
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            task_timeout_ms: None,
            fail_fast: None,
            retry_delays_ms: Vec::new(),
            keep: None,
            same_build: false,
        }
    }
}

impl Policy {
    /// Returns the time limit of one task.
    #[must_use]
    pub fn task_timeout(&self) -> Option<Duration> {
        self.task_timeout_ms.map(Duration::from_millis)
    }

    /// Returns the wait before a task's next attempt, after it has failed `failures` times in its
    /// round.
    #[must_use]
    pub fn retry_delay(&self, failures: u32) -> Duration {
        let listed = &self.retry_delays_ms[..self.retry_delays_ms.len().min(RETRY_DELAYS_MAX)];
        let place = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX);
        let delay = listed.get(place).or(listed.last());
        delay.map_or_else(|| RetryDelay::after(failures).duration(), |ms| Duration::from_millis(*ms))
    }
}

/// The fields of a [`Policy`] that a submitter states. They override what the kind chooses
/// ([`Job::policy`](crate::Job::policy)); a field that is `None` is left to the kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PolicyOverrides {
    /// See [`Policy::max_attempts`].
    pub max_attempts: Option<u32>,
    /// See [`Policy::task_timeout_ms`].
    pub task_timeout_ms: Option<u64>,
    /// See [`Policy::fail_fast`].
    pub fail_fast: Option<FailFast>,
    /// See [`Policy::same_build`].
    pub same_build: Option<bool>,
    /// See [`Policy::retry_delays_ms`]. An empty list means the retry ladder.
    pub retry_delays_ms: Option<Vec<u64>>,
    /// See [`Policy::keep`].
    pub keep: Option<Keep>,
}

impl PolicyOverrides {
    /// Sets [`Policy::max_attempts`]; 0 counts as 1.
    #[must_use]
    pub fn max_attempts(self, attempts: impl Into<Option<u32>>) -> Self {
        Self { max_attempts: attempts.into().map(|attempts| attempts.max(1)), ..self }
    }

    /// Sets [`Policy::task_timeout_ms`], of at least 1 ms.
    #[must_use]
    pub fn task_timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        let millis = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { task_timeout_ms: limit.into().map(millis), ..self }
    }

    /// Sets [`Policy::fail_fast`].
    #[must_use]
    pub fn fail_fast(self, limit: impl Into<Option<FailFast>>) -> Self {
        Self { fail_fast: limit.into(), ..self }
    }

    /// Sets [`Policy::same_build`].
    #[must_use]
    pub fn same_build(self, same_build: impl Into<Option<bool>>) -> Self {
        Self { same_build: same_build.into(), ..self }
    }

    /// Sets [`Policy::retry_delays_ms`].
    #[must_use]
    pub fn retry_delays_ms(self, delays: impl Into<Option<Vec<u64>>>) -> Self {
        Self { retry_delays_ms: delays.into(), ..self }
    }

    /// Sets [`Policy::keep`].
    #[must_use]
    pub fn keep(self, keep: impl Into<Option<Keep>>) -> Self {
        Self { keep: keep.into(), ..self }
    }

    /// Returns `policy` with the stated fields in the place of its own.
    #[must_use]
    pub fn apply(self, policy: Policy) -> Policy {
        Policy {
            max_attempts: self.max_attempts.unwrap_or(policy.max_attempts),
            task_timeout_ms: self.task_timeout_ms.or(policy.task_timeout_ms),
            fail_fast: self.fail_fast.or(policy.fail_fast),
            same_build: self.same_build.unwrap_or(policy.same_build),
            retry_delays_ms: self.retry_delays_ms.unwrap_or(policy.retry_delays_ms),
            keep: self.keep.or(policy.keep),
        }
    }
}

/// The number or share of failed tasks that ends a job early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailFast {
    /// This many failed tasks.
    Tasks(u64),
    /// This share of the job's tasks, in percent.
    Percent(u8),
}

impl fmt::Display for FailFast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tasks(tasks) => write!(f, "{tasks}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for FailFast {
    type Err = ParseFailFastError;

    /// Parses a number of tasks, `10`, or a share of them, `5%`. Zero is refused, because it would
    /// end every job.
    fn from_str(text: &str) -> Result<Self, ParseFailFastError> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => {
                percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent)
            }
            None => text.parse().ok().filter(|tasks| *tasks > 0).map(Self::Tasks),
        };
        parsed.ok_or(ParseFailFastError)
    }
}

/// The error for a text that is no [`FailFast`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of failed tasks from 1 on, or a share of all from 1% to 100%")]
pub struct ParseFailFastError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_retry_delay_repeats() {
        let waits = |policy: &Policy| [1, 2, 3, 9].map(|failures| policy.retry_delay(failures).as_millis());
        let listed = |retry_delays_ms: &[u64]| Policy {
            retry_delays_ms: retry_delays_ms.to_vec(),
            ..Policy::default()
        };
        assert_eq!(waits(&Policy::default()), [1_000, 10_000, 60_000, 600_000]);
        assert_eq!(waits(&listed(&[2_000, 30_000])), [2_000, 30_000, 30_000, 30_000]);
        assert_eq!(listed(&[1_000, 5_000]).retry_delay(0), Duration::from_secs(1));
        let too_many: Vec<u64> = (1..=100).collect();
        assert_eq!(listed(&too_many).retry_delay(90), Duration::from_millis(RETRY_DELAYS_MAX as u64));
    }

    #[test]
    fn stated_fields_override_a_policy() {
        let chosen = Policy {
            max_attempts: 1,
            task_timeout_ms: Some(500),
            fail_fast: Some(FailFast::Tasks(1)),
            same_build: true,
            retry_delays_ms: vec![2_000],
            keep: Some(Keep::Outputs),
        };
        assert_eq!(PolicyOverrides::default().apply(chosen.clone()), chosen);
        // The default of a field is a statement like any other.
        let stated = PolicyOverrides::default()
            .max_attempts(DEFAULT_MAX_ATTEMPTS)
            .task_timeout(Duration::from_secs(3))
            .fail_fast(FailFast::Percent(100))
            .same_build(false)
            .retry_delays_ms(Vec::new())
            .keep(Keep::Report);
        let expected = Policy {
            task_timeout_ms: Some(3_000),
            fail_fast: Some(FailFast::Percent(100)),
            keep: Some(Keep::Report),
            ..Policy::default()
        };
        assert_eq!(stated.apply(chosen), expected);
    }

    #[test]
    fn fail_fast_parses_number_or_share() {
        for (text, meant) in
            [("1", FailFast::Tasks(1)), ("2000", FailFast::Tasks(2000)), ("100%", FailFast::Percent(100))]
        {
            assert_eq!(text.parse(), Ok(meant));
            assert_eq!(meant.to_string(), text);
        }
        for bad in ["", "%", "0", "0%", "101%", "-1", "2.5%", "many", "5 %"] {
            assert_eq!(bad.parse::<FailFast>(), Err(ParseFailFastError), "{bad}");
        }
    }
}
