//! What stands on the broker of what a lane needs, and whether it is as it would be made.

use gristmill_shared::{Lane, QueueRole, TransportError};
use lapin::ExchangeKind;

use super::{finding::Finding, trial::Tried};
use crate::{
    topology::{DEAD, EVENTS, FACTS, RESULTS, Seen, Thing, WORK},
    visit::Visit,
};

/// How many missing things are named.
const MISSING_SHOWN: usize = 3;

/// What of it is where.
pub(super) struct Standing {
    lane: Lane,
    things: Vec<(Thing, Seen)>,
}

impl Standing {
    pub(super) async fn look(visit: &mut Visit, lane: &Lane) -> Result<Self, TransportError> {
        let queues = QueueRole::ALL.iter().map(|role| Thing::queue(&role.of(lane)));
        let exchanges = [WORK, RESULTS, DEAD, FACTS].map(|name| Thing::Exchange(name, ExchangeKind::Direct));
        let events = Thing::Exchange(EVENTS, ExchangeKind::Topic);
        let mut things = Vec::new();
        for thing in queues.chain([Thing::journal()]).chain(exchanges).chain([events]) {
            let seen = thing.look(visit).await?;
            things.push((thing, seen));
        }
        Ok(Self { lane: lane.clone(), things })
    }

    /// Whether it is there, or might be.
    pub(super) fn has(&self, name: &str) -> bool {
        self.things.iter().any(|(thing, seen)| thing.name() == name && *seen != Seen::Missing)
    }

    /// How many messages wait in a queue of the lane, and how many consumers it has.
    pub(super) fn queue(&self, role: QueueRole) -> Option<(u32, u32)> {
        let name = role.of(&self.lane).to_string();
        let (_, seen) = self.things.iter().find(|(thing, _)| thing.name() == name)?;
        match seen {
            Seen::There { messages, consumers } => Some((*messages, *consumers)),
            Seen::Missing | Seen::Hidden => None,
        }
    }

    pub(super) fn findings(&self, configure: &Tried) -> Vec<Finding> {
        let with = |wanted: Seen| -> Vec<String> {
            let found = self.things.iter().filter(|(_, seen)| *seen == wanted);
            found.map(|(thing, _)| thing.to_string()).collect()
        };
        let (missing, hidden) = (with(Seen::Missing), with(Seen::Hidden));
        let check = format!("lane {}", self.lane);
        let more = missing.len().saturating_sub(MISSING_SHOWN);
        let mut shown = missing[..missing.len() - more].join(", ");
        if more > 0 {
            shown += &format!(", and {more} more");
        }
        let finding = match (missing.len(), configure) {
            (0, _) => Finding::ok(check, format_args!("its queues, the exchanges and the journal are there")),
            (_, Tried::May) => Finding::warning(check, format_args!("missing: {shown}"))
                .hint("the first program of Gristmill on this lane makes it, or `gristmill setup`"),
            _ => Finding::problem(check, format_args!("missing: {shown}"))
                .hint("`gristmill setup` with a user who may configure"),
        };
        let unseen = (!hidden.is_empty()).then(|| {
            Finding::unseen("hidden", format_args!("not shown to this user: {}", hidden.join(", ")))
        });
        [finding].into_iter().chain(unseen).collect()
    }

    /// Declares what is there once more, which the broker refuses if it would be another.
    pub(super) async fn compare(
        &self,
        visit: &mut Visit,
        configure: &Tried,
    ) -> Result<Vec<Finding>, TransportError> {
        const CHECK: &str = "arguments";
        if let Tried::MayNot(why) | Tried::Untried(why) = configure {
            return Ok(vec![
                Finding::unseen(CHECK, format_args!("they cannot be compared: {why}"))
                    .hint("run this with a user who may configure"),
            ]);
        }
        let (mut findings, mut compared) = (Vec::new(), 0);
        for (thing, seen) in &self.things {
            if matches!(seen, Seen::There { .. }) {
                match thing.declare(visit).await {
                    Ok(()) => compared += 1,
                    Err(TransportError::Mismatch { what, difference, .. }) => {
                        findings.push(Finding::problem(CHECK, format_args!("{what}: {difference}")).hint(
                            "somebody or another version made it; when it is empty, delete it there and run \
                             `gristmill setup`, or use another --lane",
                        ));
                    }
                    Err(TransportError::Forbidden { lacks, .. }) => {
                        findings
                            .push(Finding::unseen(CHECK, format_args!("{thing} was not compared: {lacks}")));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if findings.is_empty() && compared > 0 {
            findings.push(Finding::ok(CHECK, "as this version would set them"));
        }
        Ok(findings)
    }
}
