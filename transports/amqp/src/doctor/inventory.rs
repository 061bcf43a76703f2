//! What stands on the broker of what a lane needs, and whether it is as it would be made.

use gristmill_shared::{Lane, QueueRole, Shards, TransportError};
use lapin::ExchangeKind;

use super::{finding::Finding, probe::Tried};
use crate::{
    topology::journal_ready,
    topology::{DEAD, EVENTS, FACTS, JOURNAL, RESULTS, Seen, Thing, WORK},
    topology::declare_connection::Visit,
};

/// How many missing things are named.
const MISSING_SHOWN: usize = 3;

/// What of it is where.
pub(super) struct Standing {
    lane: Lane,
    /// How many tasks queues the lane has.
    shards: Shards,
    things: Vec<(Thing, Seen)>,
    /// Those that the broker knows and could not show, and why.
    away: Vec<(Thing, String)>,
}

impl Standing {
    pub(super) async fn look(visit: &mut Visit, lane: &Lane) -> Result<Self, TransportError> {
        let (mut shards, mut roles) = (Shards::ONE, QueueRole::ALL.to_vec());
        while let Some(more) = shards.one_more() {
            let Ok(Seen::There { .. }) = see(visit, &Thing::queue(&more.last().of(lane))).await? else {
                break;
            };
            shards = more;
            roles.push(more.last());
        }
        let queues = roles.iter().map(|role| Thing::queue(&role.of(lane)));
        let exchanges = [WORK, RESULTS, DEAD, FACTS].map(|name| Thing::Exchange(name, ExchangeKind::Direct));
        let events = Thing::Exchange(EVENTS, ExchangeKind::Topic);
        let (mut things, mut away) = (Vec::new(), Vec::new());
        for thing in queues.chain([Thing::journal()]).chain(exchanges).chain([events]) {
            match see(visit, &thing).await? {
                Ok(seen) => things.push((thing, seen)),
                Err(why) => away.push((thing, why)),
            }
        }
        Ok(Self { lane: lane.clone(), shards, things, away })
    }

    /// How many tasks queues the lane has.
    pub(super) fn shards(&self) -> Shards {
        self.shards
    }

    /// Whether it is there, or might be.
    pub(super) fn has(&self, name: &str) -> bool {
        self.things.iter().any(|(thing, seen)| thing.name() == name && *seen != Seen::Missing)
    }

    /// What a queue of the lane is called.
    pub(super) fn name(&self, role: QueueRole) -> String {
        role.of(&self.lane).to_string()
    }

    /// How many messages wait in a queue of the lane, and how many consumers it has.
    pub(super) fn queue(&self, role: QueueRole) -> Option<(u32, u32)> {
        let name = self.name(role);
        let (_, seen) = self.things.iter().find(|(thing, _)| thing.name() == name)?;
        match seen {
            Seen::There { messages, consumers } => Some((*messages, *consumers)),
            Seen::Missing | Seen::Hidden => None,
        }
    }

    /// How many messages wait in those queues of the lane together, if all of them are shown to us.
    pub(super) fn waiting(&self, roles: impl IntoIterator<Item = QueueRole>) -> Option<u32> {
        roles.into_iter().map(|role| self.queue(role).map(|(waiting, _)| waiting)).sum()
    }

    pub(super) fn findings(&self, configure: &Tried, vhost: &str) -> Vec<Finding> {
        let with = |wanted: Seen| -> Vec<String> {
            let found = self.things.iter().filter(|(_, seen)| *seen == wanted);
            found.map(|(thing, _)| thing.to_string()).collect()
        };
        let (missing, hidden) = (with(Seen::Missing), with(Seen::Hidden));
        let check = format!("lane {}", self.lane);
        let more = missing.len().saturating_sub(MISSING_SHOWN);
        let mut shown = format!("missing: {}", missing[..missing.len() - more].join(", "));
        if more > 0 {
            shown += &format!(", and {more} more");
        }
        if self.is_bare() {
            shown = "nothing of Gristmill is set up here yet".into();
        }
        let finding = match (missing.len(), configure) {
            (0, _) if self.away.is_empty() => {
                let shards = match self.shards {
                    Shards::ONE => String::new(),
                    shards => format!(" ({shards} tasks queues)"),
                };
                let found = format!("its queues{shards}, the exchanges and the journal are there");
                Some(Finding::ok(&check, found))
            }
            (0, _) => None,
            (_, Tried::May) if self.is_begun() => {
                Some(Finding::problem(&check, format_args!("half of it is there; {shown}")).hint(format!(
                    "somebody deleted it, or did not make it; `{}` makes it anew",
                    self.setup()
                )))
            }
            (_, Tried::May) => Some(
                Finding::warning(&check, shown)
                    .hint(format!("`{}`, or the first sink or worker on this lane makes it", self.setup())),
            ),
            _ => Some(
                Finding::problem(&check, shown)
                    .hint(format!("`{}` with a user who may configure", self.setup())),
            ),
        };
        let away = self.away.iter().map(|(thing, why)| {
            let hint = ready::remedy(why, vhost).unwrap_or_else(|| {
                "are all nodes of the broker up? `rabbitmqctl list_queues name state` tells".into()
            });
            Finding::problem(&check, format_args!("{thing} is known there, but not at hand: {why}"))
                .hint(hint)
        });
        let unseen = (!hidden.is_empty()).then(|| {
            Finding::unseen("hidden", format_args!("not shown to this user: {}", hidden.join(", ")))
        });
        finding.into_iter().chain(away).chain(unseen).collect()
    }

    /// Whether nothing at all is there, as on a broker that no program of ours has been at.
    pub(super) fn is_bare(&self) -> bool {
        self.away.is_empty() && self.things.iter().all(|(_, seen)| *seen == Seen::Missing)
    }

    /// Whether somebody has begun to make the lane: one of its own queues is there.
    fn is_begun(&self) -> bool {
        let own = |thing: &Thing| matches!(thing, Thing::Queue { name, .. } if name != JOURNAL);
        self.things.iter().any(|(thing, seen)| own(thing) && matches!(seen, Seen::There { .. }))
    }

    /// What makes what is missing.
    fn setup(&self) -> String {
        match self.shards {
            Shards::ONE => format!("gristmill setup --lane {}", self.lane),
            shards => format!("gristmill setup --lane {} --shards {shards}", self.lane),
        }
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
                        let found = format!("{what}: {difference}");
                        findings.push(Finding::problem(CHECK, found).hint(self.mending(thing)));
                    }
                    Err(TransportError::Forbidden { lacks, .. }) => {
                        findings
                            .push(Finding::unseen(CHECK, format_args!("{thing} was not compared: {lacks}")));
                    }
                    Err(error) => {
                        findings
                            .push(Finding::unseen(CHECK, format_args!("{thing} was not compared: {error}")));
                    }
                }
            }
        }
        if findings.is_empty() && compared > 0 {
            findings.push(Finding::ok(CHECK, "as this version would set them"));
        }
        Ok(findings)
    }

    /// What to do about a thing that is another than ours would be.
    fn mending(&self, thing: &Thing) -> String {
        let setup = self.setup();
        let (when, else_use) = match thing {
            Thing::Queue { name, .. } if name == JOURNAL => {
                ("all lanes have it in common, so when no job runs on any", "virtual host")
            }
            Thing::Queue { .. } => ("when it is empty", "--lane"),
            Thing::Exchange(..) => ("all lanes have it in common, so when no program runs", "virtual host"),
        };
        format!(
            "somebody or another version made it; {when}, delete it there and run `{setup}`, or use another {else_use}"
        )
    }
}

/// How a thing was found, or why the broker could not tell although it is there.
async fn see(visit: &mut Visit, thing: &Thing) -> Result<Result<Seen, String>, TransportError> {
    match thing.look(visit).await {
        Ok(seen) => Ok(Ok(seen)),
        Err(TransportError::Disconnected { reason, .. }) if visit.channel().await.is_ok() => Ok(Err(reason)),
        Err(error) => Err(error),
    }
}
