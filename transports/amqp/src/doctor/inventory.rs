//! The entities that a lane needs: which of them exist, and with the expected arguments.

use gristmill_shared::{Finding, Lane, QueueRole, Shards, TransportError};
use lapin::ExchangeKind;

use super::probe::ProbeOutcome;
use crate::topology::{
    self, BrokerEntity, DEAD_EXCHANGE, DeclareSession, EVENTS_EXCHANGE, Existence, FACTS_EXCHANGE,
    JOURNAL_QUEUE, RESULTS_EXCHANGE, WORK_EXCHANGE,
};

/// Number of missing entities that are named.
const MISSING_SHOWN_MAX: usize = 3;

/// The state of all entities of a lane.
pub(super) struct BrokerInventory {
    lane: Lane,
    /// Number of tasks queues of the lane.
    shards: Shards,
    entities: Vec<(BrokerEntity, Existence)>,
    /// Entities that the broker knows but cannot access, with the reason.
    unavailable: Vec<(BrokerEntity, String)>,
}

impl BrokerInventory {
    pub(super) async fn collect(session: &mut DeclareSession, lane: &Lane) -> Result<Self, TransportError> {
        let (mut shards, mut roles) = (Shards::ONE, QueueRole::ALL.to_vec());
        while let Some(more) = shards.checked_next() {
            let Ok(Existence::Present { .. }) =
                lookup_entity(session, &BrokerEntity::queue(&more.last().of(lane))).await?
            else {
                break;
            };
            shards = more;
            roles.push(more.last());
        }
        let queues = roles.iter().map(|role| BrokerEntity::queue(&role.of(lane)));
        let exchanges = [WORK_EXCHANGE, RESULTS_EXCHANGE, DEAD_EXCHANGE, FACTS_EXCHANGE]
            .map(|name| BrokerEntity::Exchange(name, ExchangeKind::Direct));
        let events = BrokerEntity::Exchange(EVENTS_EXCHANGE, ExchangeKind::Topic);
        let (mut entities, mut unavailable) = (Vec::new(), Vec::new());
        for entity in queues.chain([BrokerEntity::journal()]).chain(exchanges).chain([events]) {
            match lookup_entity(session, &entity).await? {
                Ok(existence) => entities.push((entity, existence)),
                Err(why) => unavailable.push((entity, why)),
            }
        }
        Ok(Self { lane: lane.clone(), shards, entities, unavailable })
    }

    /// Returns the number of tasks queues of the lane.
    pub(super) fn shards(&self) -> Shards {
        self.shards
    }

    /// True if the entity exists, or may exist.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entities
            .iter()
            .any(|(entity, existence)| entity.name() == name && *existence != Existence::Missing)
    }

    /// Returns the name of a queue of the lane.
    pub(super) fn name(&self, role: QueueRole) -> String {
        role.of(&self.lane).to_string()
    }

    /// Returns the numbers of ready messages and of consumers of a queue of the lane.
    pub(super) fn queue(&self, role: QueueRole) -> Option<(u32, u32)> {
        let name = self.name(role);
        let (_, existence) = self.entities.iter().find(|(entity, _)| entity.name() == name)?;
        match existence {
            Existence::Present { messages, consumers } => Some((*messages, *consumers)),
            Existence::Missing | Existence::Hidden => None,
        }
    }

    /// Returns the number of ready messages in these queues together, if all of them are visible.
    pub(super) fn waiting(&self, roles: impl IntoIterator<Item = QueueRole>) -> Option<u32> {
        roles.into_iter().map(|role| self.queue(role).map(|(waiting, _)| waiting)).sum()
    }

    pub(super) fn findings(&self, configure: &ProbeOutcome, vhost: &str) -> Vec<Finding> {
        let with = |wanted: Existence| -> Vec<String> {
            let found = self.entities.iter().filter(|(_, existence)| *existence == wanted);
            found.map(|(entity, _)| entity.to_string()).collect()
        };
        let (missing, hidden) = (with(Existence::Missing), with(Existence::Hidden));
        let check = format!("lane {}", self.lane);
        let more = missing.len().saturating_sub(MISSING_SHOWN_MAX);
        let mut shown = format!("missing: {}", missing[..missing.len() - more].join(", "));
        if more > 0 {
            shown += &format!(", and {more} more");
        }
        if self.is_bare() {
            shown = "nothing of Gristmill is set up here yet".into();
        }
        let finding = match (missing.len(), configure) {
            (0, _) if self.unavailable.is_empty() => {
                let shards = match self.shards {
                    Shards::ONE => String::new(),
                    shards => format!(" ({shards} tasks queues)"),
                };
                let found = format!("its queues{shards}, the exchanges and the journal are there");
                Some(Finding::ok(&check, found))
            }
            (0, _) => None,
            (_, ProbeOutcome::Allowed) if self.is_begun() => {
                Some(Finding::problem(&check, format_args!("only part of it exists; {shown}")).hint(format!(
                    "the rest was deleted, or never created; `{}` creates it",
                    self.setup_command()
                )))
            }
            (_, ProbeOutcome::Allowed) => Some(Finding::warning(&check, shown).hint(format!(
                "`{}`, or the first sink or worker on this lane creates it",
                self.setup_command()
            ))),
            _ => Some(
                Finding::problem(&check, shown)
                    .hint(format!("`{}` with a user who may configure", self.setup_command())),
            ),
        };
        let unavailable = self.unavailable.iter().map(|(entity, why)| {
            let hint = topology::repair_hint(why, vhost).unwrap_or_else(|| {
                "are all nodes of the broker up? `rabbitmqctl list_queues name state` tells".into()
            });
            Finding::problem(
                &check,
                format_args!("{entity} is known to the broker, but not available: {why}"),
            )
            .hint(hint)
        });
        let unseen = (!hidden.is_empty()).then(|| {
            Finding::unseen("hidden", format_args!("not shown to this user: {}", hidden.join(", ")))
        });
        finding.into_iter().chain(unavailable).chain(unseen).collect()
    }

    /// True if none of the entities exists, as on a broker that was never set up.
    pub(super) fn is_bare(&self) -> bool {
        self.unavailable.is_empty()
            && self.entities.iter().all(|(_, existence)| *existence == Existence::Missing)
    }

    /// True if at least one of the lane's own queues exists.
    fn is_begun(&self) -> bool {
        let own = |entity: &BrokerEntity| matches!(entity, BrokerEntity::Queue { name, .. } if name != JOURNAL_QUEUE);
        self.entities
            .iter()
            .any(|(entity, existence)| own(entity) && matches!(existence, Existence::Present { .. }))
    }

    /// Returns the command that creates the missing entities.
    fn setup_command(&self) -> String {
        match self.shards {
            Shards::ONE => format!("gristmill setup --lane {}", self.lane),
            shards => format!("gristmill setup --lane {} --shards {shards}", self.lane),
        }
    }

    /// Declares the existing entities again, which the broker refuses if their arguments differ.
    pub(super) async fn compare(
        &self,
        session: &mut DeclareSession,
        configure: &ProbeOutcome,
    ) -> Result<Vec<Finding>, TransportError> {
        const CHECK_NAME: &str = "arguments";
        if let ProbeOutcome::Denied(why) | ProbeOutcome::Untested(why) = configure {
            return Ok(vec![
                Finding::unseen(CHECK_NAME, format_args!("they cannot be compared: {why}"))
                    .hint("run this with a user who may configure"),
            ]);
        }
        let (mut findings, mut compared) = (Vec::new(), 0);
        for (entity, existence) in &self.entities {
            if matches!(existence, Existence::Present { .. }) {
                match entity.declare(session).await {
                    Ok(()) => compared += 1,
                    Err(TransportError::Mismatch { what, difference, .. }) => {
                        let found = format!("{what}: {difference}");
                        findings.push(Finding::problem(CHECK_NAME, found).hint(self.repair_hint(entity)));
                    }
                    Err(TransportError::PermissionDenied { lacks, .. }) => {
                        findings.push(Finding::unseen(
                            CHECK_NAME,
                            format_args!("{entity} was not compared: {lacks}"),
                        ));
                    }
                    Err(error) => {
                        findings.push(Finding::unseen(
                            CHECK_NAME,
                            format_args!("{entity} was not compared: {error}"),
                        ));
                    }
                }
            }
        }
        if findings.is_empty() && compared > 0 {
            findings.push(Finding::ok(CHECK_NAME, "as this version would set them"));
        }
        Ok(findings)
    }

    /// Returns the remedy for an entity with other arguments.
    fn repair_hint(&self, entity: &BrokerEntity) -> String {
        let setup = self.setup_command();
        let (when, else_use) = match entity {
            BrokerEntity::Queue { name, .. } if name == JOURNAL_QUEUE => {
                ("all lanes share it, so when no job runs on any", "virtual host")
            }
            BrokerEntity::Queue { .. } => ("when it is empty", "--lane"),
            BrokerEntity::Exchange(..) => ("all lanes share it, so when no program runs", "virtual host"),
        };
        format!(
            "another user or version created it; {when}, delete it there and run `{setup}`, or use another {else_use}"
        )
    }
}

/// Looks an entity up. The inner error is the reason why the broker cannot access an entity that it
/// knows.
async fn lookup_entity(
    session: &mut DeclareSession,
    entity: &BrokerEntity,
) -> Result<Result<Existence, String>, TransportError> {
    match entity.lookup(session).await {
        Ok(existence) => Ok(Ok(existence)),
        Err(TransportError::Disconnected { reason, .. }) if session.channel().await.is_ok() => {
            Ok(Err(reason))
        }
        Err(error) => Err(error),
    }
}
