//! What was found.

use std::fmt::{self, Display};

use super::role::Part;

/// What one check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: String,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What was found, in a line.
    pub found: String,
    /// What to do about it, if there is something.
    pub hint: Option<String>,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// It is.
    Ok,
    /// It cannot be seen from here.
    Unseen,
    /// It works, but not as well as it should, or not yet.
    Warning,
    /// It does not work.
    Problem,
}

impl Finding {
    fn new(verdict: Verdict, check: impl Display, found: impl Display) -> Self {
        Self { check: check.to_string(), verdict, found: found.to_string(), hint: None }
    }

    pub(super) fn ok(check: impl Display, found: impl Display) -> Self {
        Self::new(Verdict::Ok, check, found)
    }

    pub(super) fn unseen(check: impl Display, found: impl Display) -> Self {
        Self::new(Verdict::Unseen, check, found)
    }

    pub(super) fn warning(check: impl Display, found: impl Display) -> Self {
        Self::new(Verdict::Warning, check, found)
    }

    pub(super) fn problem(check: impl Display, found: impl Display) -> Self {
        Self::new(Verdict::Problem, check, found)
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Unseen => "unseen",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// What the user may do, where `wanted` is the part that it has to have.
pub(super) fn rights(
    wanted: Option<Part>,
    fits: &[Part],
    lacking: Vec<(Part, Vec<String>)>,
    untried: &[String],
) -> Finding {
    let untried = match untried {
        [] => String::new(),
        untried => format!(" ({})", untried.join("; ")),
    };
    // What an operator lacks counts once for all that it declares, so that nobody is taken for one by that.
    let nearest = lacking.into_iter().min_by_key(|(part, lacks)| (*part == Part::Operator, lacks.len()));
    match (wanted, fits, nearest) {
        (_, [], Some((part, lacks))) => {
            let whole = if wanted.is_some() { "" } else { ", and of no other part; it is nearest to this" };
            let lacks = lacks.join("; ");
            Finding::problem("rights", format_args!("not those of a fleet's {part}{whole}: {lacks}{untried}"))
                .hint("deploy/rabbitmq-permissions gives each part's user its rights")
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
    fn a_user_who_fits_nowhere_is_told_what_is_nearest() {
        let lacking = vec![
            (Part::Sink, vec!["a".into(), "b".into()]),
            (Part::Worker, vec!["the user w lacks the read right on the queue q".into()]),
            (Part::Operator, vec!["c".into()]),
        ];
        let found = rights(None, &[], lacking.clone(), &[]);
        assert_eq!(found.verdict, Verdict::Problem);
        assert!(found.found.contains("worker") && found.found.contains("lacks the read right"), "{found:?}");
        let found = rights(None, &[Part::Producer], lacking, &[]);
        assert_eq!((found.verdict, found.found.as_str()), (Verdict::Ok, "those of a fleet's producer"));
    }

    #[test]
    fn what_was_not_tried_is_not_called_well() {
        let found = rights(Some(Part::Worker), &[Part::Worker], Vec::new(), &["not tried".into()]);
        assert_eq!(found.verdict, Verdict::Unseen);
        assert!(found.found.contains("(not tried)"), "{found:?}");
    }
}
