//! The permissions that each role of a fleet needs.

use gristmill_shared::{FleetRole, Lane, Queue, QueueRole, Shards};

use crate::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE, FACTS_EXCHANGE, RESULTS_EXCHANGE, WORK_EXCHANGE};

/// A permission that a role needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RequiredRight {
    /// Publish to this exchange.
    Publish(&'static str),
    /// Consume this queue.
    Consume(Queue),
    /// Read the journal.
    ReadJournal,
    /// Read events, through a queue of its own.
    Listen,
    /// Declare all entities.
    DeclareAll,
    /// Bind queues of the lane to this exchange.
    Bind(&'static str),
}

impl RequiredRight {
    /// Returns the permissions that a role needs on a lane with that number of tasks queues. They
    /// are those that `deploy/rabbitmq-permissions` gives.
    pub(super) fn of_role(role: FleetRole, lane: &Lane, shards: Shards) -> Vec<Self> {
        let (publish, consume, listen): (&[_], Vec<_>, _) = match role {
            FleetRole::Operator => {
                let bind = [WORK_EXCHANGE, RESULTS_EXCHANGE, DEAD_EXCHANGE, FACTS_EXCHANGE].map(Self::Bind);
                return [Self::DeclareAll, Self::ReadJournal].into_iter().chain(bind).collect();
            }
            FleetRole::Producer => {
                (&[WORK_EXCHANGE, RESULTS_EXCHANGE, FACTS_EXCHANGE, EVENTS_EXCHANGE], Vec::new(), true)
            }
            FleetRole::Worker => (
                &[WORK_EXCHANGE, RESULTS_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE],
                shards.queues().chain([QueueRole::Requeued, QueueRole::Suspect]).collect(),
                false,
            ),
            FleetRole::Sink => (
                &[WORK_EXCHANGE, RESULTS_EXCHANGE, FACTS_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE],
                vec![QueueRole::Results, QueueRole::Dead],
                true,
            ),
        };
        let publish = publish.iter().map(|exchange| Self::Publish(exchange));
        let consume = consume.iter().map(|role| Self::Consume(role.of(lane)));
        let listen = listen.then_some(Self::Listen);
        publish.chain(consume).chain([Self::ReadJournal]).chain(listen).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::{Path, PathBuf},
        process::Command,
    };

    use regex::Regex;

    use super::*;
    use crate::topology::{EVENTS_QUEUE_PREFIX, JOURNAL_QUEUE};

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Right {
        Configure,
        Write,
        Read,
    }

    const ALL_RIGHTS: [Right; 3] = [Right::Configure, Right::Write, Right::Read];

    fn repository_path(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    /// Returns the expressions that the script sets for a role's user, one for each of
    /// [`ALL_RIGHTS`].
    fn script_rights(part: FleetRole, lane: &str) -> [String; 3] {
        let mut script = Command::new(repository_path("deploy/rabbitmq-permissions"));
        let printed = script.args(["--dry-run", "--prefix", "", "--lane", lane]).output().unwrap();
        assert!(printed.status.success(), "{printed:?}");
        let printed = String::from_utf8(printed.stdout).unwrap();
        let user = format!("-{part}");
        let line = printed.lines().find(|line| line.split(' ').next().unwrap().ends_with(&user)).unwrap();
        line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
    }

    /// True if a role needs that permission on an entity of that name.
    fn is_needed(needs: &[RequiredRight], right: Right, name: &str) -> bool {
        needs.iter().any(|need| match need {
            RequiredRight::Publish(exchange) => right == Right::Write && name == *exchange,
            RequiredRight::Consume(queue) => right == Right::Read && name == queue.to_string(),
            RequiredRight::ReadJournal => right == Right::Read && name == JOURNAL_QUEUE,
            RequiredRight::Listen => {
                name.starts_with(EVENTS_QUEUE_PREFIX) || right == Right::Read && name == EVENTS_EXCHANGE
            }
            RequiredRight::DeclareAll => name.starts_with("gristmill."),
            RequiredRight::Bind(exchange) => right == Right::Read && name == *exchange,
        })
    }

    /// Compares the permissions script with the needs of each role, in both directions.
    #[test]
    fn script_grants_needed_rights_only() {
        let (lane, other): (Lane, Lane) = ("night".parse().unwrap(), "nights".parse().unwrap());
        let all = Shards::new(gristmill_shared::SHARDS_MAX).unwrap();
        let roles = || QueueRole::ALL.into_iter().chain(all.queues());
        let queues = roles().flat_map(|role| [role.of(&lane).to_string(), role.of(&other).to_string()]);
        let ours =
            [WORK_EXCHANGE, RESULTS_EXCHANGE, FACTS_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE, JOURNAL_QUEUE]
                .map(str::to_owned);
        // The default exchange goes by the name of amq.default.
        let others =
            ["amq.default", "amq.topic", "amq.gen-1", "gristmill", "gristmill.", "mine", "my.gristmill.work"];
        let own = format!("{EVENTS_QUEUE_PREFIX}01");
        let names: Vec<_> = queues
            .chain(ours)
            .chain(others.map(str::to_owned))
            .chain([own, "gristmill.eventsx".into()])
            .collect();
        for part in FleetRole::ALL {
            let needs = RequiredRight::of_role(part, &lane, all);
            let set = script_rights(part, "night").map(|set| Regex::new(&set).unwrap());
            for (right, set) in ALL_RIGHTS.into_iter().zip(set) {
                for name in &names {
                    assert_eq!(
                        set.is_match(name),
                        is_needed(&needs, right, name),
                        "{part}: {right:?} {name}: {set}"
                    );
                }
            }
        }
    }

    #[test]
    fn protocol_page_matches_script() {
        let page = std::fs::read_to_string(repository_path("docs/protocol-amqp.md")).unwrap();
        for part in FleetRole::ALL {
            let start = format!("| {part}");
            let is_its = |line: &&str| line.starts_with(&start) && line.contains("| `^");
            let row = page.lines().find(is_its).unwrap_or_else(|| panic!("no row for the {part}"));
            let shown: Vec<_> = row.split(" | ").skip(1).collect();
            let plain =
                |cell: &str| cell.trim_matches([' ', '|', '`']).replace("\\|", "|").replace("LANE", "night");
            let shown: Vec<_> = shown.into_iter().map(plain).collect();
            assert_eq!(shown, script_rights(part, "night"), "{part}");
        }
    }
}
