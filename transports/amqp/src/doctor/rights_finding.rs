//! The finding about the user's permissions.

use gristmill_shared::{Finding, FleetRole};

/// Summarizes the user's permissions. `wanted` is the role that the user must have, if one is
/// given.
pub(super) fn rights_finding(
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
    use gristmill_shared::Severity;

    use super::*;

    #[test]
    fn misfit_user_learns_nearest_role() {
        let lacking = vec![
            (FleetRole::Sink, vec!["a".into(), "b".into()]),
            (FleetRole::Worker, vec!["the user w lacks the read right on the queue q".into()]),
            (FleetRole::Operator, vec!["c".into()]),
        ];
        let found = rights_finding(None, &[], lacking.clone(), &[]);
        assert_eq!(found.verdict, Severity::Problem);
        assert!(found.found.contains("worker") && found.found.contains("lacks the read right"), "{found:?}");
        let found = rights_finding(None, &[FleetRole::Producer], lacking, &[]);
        assert_eq!((found.verdict, found.found.as_str()), (Severity::Ok, "those of a fleet's producer"));
    }

    #[test]
    fn untested_right_is_unseen() {
        let found =
            rights_finding(Some(FleetRole::Worker), &[FleetRole::Worker], Vec::new(), &["not tried".into()]);
        assert_eq!(found.verdict, Severity::Unseen);
        assert!(found.found.contains("(not tried)"), "{found:?}");
    }
}
