//! How a job's tasks are treated when they fail; travels in every batch, so that every worker treats a job alike.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// How often a task is tried unless the job says otherwise.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// How a job's tasks are treated when they fail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// A task that failed this often is a failure. At least 1. Defaults to [`DEFAULT_MAX_ATTEMPTS`].
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// How long one task may take, in milliseconds; `TaskContext::check` sees it. Defaults to no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_timeout_ms: Option<u64>,
    /// When so many tasks have failed, the job ends early. Defaults to never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_fast: Option<FailFast>,
    /// Only workers of the submitter's build run the tasks. Defaults to any build of the job's version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_build: bool,
}

fn default_max_attempts() -> u32 {
    DEFAULT_MAX_ATTEMPTS
}

impl Default for Policy {
    fn default() -> Self {
        Self { max_attempts: DEFAULT_MAX_ATTEMPTS, task_timeout_ms: None, fail_fast: None, same_build: false }
    }
}

impl Policy {
    /// How long one task may take.
    #[must_use]
    pub fn task_timeout(&self) -> Option<Duration> {
        self.task_timeout_ms.map(Duration::from_millis)
    }
}

/// How many failures end a job early.
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
    type Err = NoFailFast;

    /// A number of tasks, `10`, or a share of them, `5%`; 0 of either would end every job.
    fn from_str(text: &str) -> Result<Self, NoFailFast> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => {
                percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent)
            }
            None => text.parse().ok().filter(|tasks| *tasks > 0).map(Self::Tasks),
        };
        parsed.ok_or(NoFailFast)
    }
}

/// A text that is no [`FailFast`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of failed tasks from 1 on, or a share of all from 1% to 100%")]
pub struct NoFailFast;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fail_fast_is_a_number_or_a_share() {
        for (text, meant) in
            [("1", FailFast::Tasks(1)), ("2000", FailFast::Tasks(2000)), ("100%", FailFast::Percent(100))]
        {
            assert_eq!(text.parse(), Ok(meant));
            assert_eq!(meant.to_string(), text);
        }
        for bad in ["", "%", "0", "0%", "101%", "-1", "2.5%", "many", "5 %"] {
            assert_eq!(bad.parse::<FailFast>(), Err(NoFailFast), "{bad}");
        }
    }
}
