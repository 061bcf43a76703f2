//! How a job's tasks are treated when they fail; travels in every batch, so that every worker treats a job alike.

use std::time::Duration;

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
    /// When too many tasks failed, the job ends early. Defaults to never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_fast: Option<FailFast>,
}

fn default_max_attempts() -> u32 {
    DEFAULT_MAX_ATTEMPTS
}

impl Default for Policy {
    fn default() -> Self {
        Self { max_attempts: DEFAULT_MAX_ATTEMPTS, task_timeout_ms: None, fail_fast: None }
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
