//! Findings of the doctor.

use std::fmt::{self, Display};

use super::fleet_role::FleetRole;

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

    pub(super) fn ok(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Ok, check, found)
    }

    pub(super) fn unseen(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Unseen, check, found)
    }

    pub(super) fn warning(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Warning, check, found)
    }

    pub(super) fn problem(check: impl Display, found: impl Display) -> Self {
        Self::new(Severity::Problem, check, found)
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
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

/// Summarizes the user's permissions. `wanted` is the role that the user must have, if one is
/// given.
pub(super) fn rights(
    wanted: Option<FleetRole>,
    fits: &[FleetRole],
    lacking: Vec<(FleetRole, Vec<String>)>,
    untried: &[String],
) -> Finding {
    let untried = match untried {
        [] => String::new(),
        untried => format!(" ({})", untried.join("; ")),
    };
    // The operator comes last: all that it declares counts as one missing permission, so that
    // otherwise most users would be nearest to it.
    let nearest = lacking.into_iter().min_by_key(|(part, lacks)| (*part == FleetRole::Operator, lacks.len()));
    match (wanted, fits, nearest) {
        (_, [], Some((part, lacks))) => {
            let whole = if wanted.is_some() { "" } else { ", nor of any other role; this one is nearest" };
            let lacks = lacks.join("; ");
            Finding::problem("rights", format_args!("not those of a fleet's {part}{whole}: {lacks}{untried}"))
                .hint("deploy/rabbitmq-permissions gives each role's user its rights")
        }
        (_, fits, _) => {
            let fits: Vec<_> = fits.iter().map(ToString::to_string).collect();
            let found = format!("those of a fleet's {}{untried}", fits.join(", "));
            if untried.is_empty() { Finding::ok("rights", found) } else { Finding::unseen("rights", found) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfit_user_learns_nearest_role() {
        let lacking = vec![
            (FleetRole::Sink, vec!["a".into(), "b".into()]),
            (FleetRole::Worker, vec!["the user w lacks the read right on the queue q".into()]),
            (FleetRole::Operator, vec!["c".into()]),
        ];
        let found = rights(None, &[], lacking.clone(), &[]);
        assert_eq!(found.verdict, Severity::Problem);
        assert!(found.found.contains("worker") && found.found.contains("lacks the read right"), "{found:?}");
        let found = rights(None, &[FleetRole::Producer], lacking, &[]);
        assert_eq!((found.verdict, found.found.as_str()), (Severity::Ok, "those of a fleet's producer"));
    }

    #[test]
    fn untested_right_is_unseen() {
        let found = rights(Some(FleetRole::Worker), &[FleetRole::Worker], Vec::new(), &["not tried".into()]);
        assert_eq!(found.verdict, Severity::Unseen);
        assert!(found.found.contains("(not tried)"), "{found:?}");
    }
}
