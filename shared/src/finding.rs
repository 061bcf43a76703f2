//! Findings of the doctor, which examines a broker.

use std::fmt::{self, Display};

/// Result of one check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The subject of the check, in a word or two.
    pub check: String,
    /// The severity.
    pub verdict: Severity,
    /// The finding, in one line.
    pub found: String,
    /// The remedy, if there is one.
    pub hint: Option<String>,
}

/// Severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Expected state.
    Ok,
    /// Not visible from here.
    Unseen,
    /// Works, but not as well as it should, or not yet.
    Warning,
    /// Does not work.
    Problem,
}

impl Finding {
    fn new(verdict: Severity, check: impl Display, found: impl Display) -> Self {
        Self { check: check.to_string(), verdict, found: found.to_string(), hint: None }
    }

    /// Returns a finding of the expected state.
    #[must_use]
    pub fn ok(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Ok, check, found)
    }

    /// Returns a finding of something that is not visible from here.
    #[must_use]
    pub fn unseen(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Unseen, check, found)
    }

    /// Returns a finding of something that works, but not as well as it should.
    #[must_use]
    pub fn warning(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Warning, check, found)
    }

    /// Returns a finding of something that does not work.
    #[must_use]
    pub fn problem(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Problem, check, found)
    }

    /// Adds the remedy.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Unseen => "unseen",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}
