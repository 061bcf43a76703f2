//! What each part in a fleet needs to be allowed.

use std::fmt;

use gristmill_shared::{Lane, Queue, QueueRole, Shards};

use crate::topology::{DEAD, EVENTS, FACTS, RESULTS, WORK};

/// A part in a fleet, which has a user of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Submits jobs, cancels them and waits for them.
    Producer,
    /// Runs tasks.
    Worker,
    /// Folds results, and sends failed tasks again.
    Sink,
    /// Makes the lanes; see `deploy/rabbitmq-permissions`.
    Operator,
}

/// What a part needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Need {
    /// To publish to this exchange.
    Publish(&'static str),
    /// To consume this queue.
    Consume(Queue),
    /// To read the journal.
    ReadJournal,
    /// To have a queue of its own that hears events.
    Listen,
    /// To declare all that there is.
    DeclareAll,
    /// To bind queues of the lane to this exchange.
    Bind(&'static str),
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Producer, Self::Worker, Self::Sink, Self::Operator];

    /// What it needs on a lane with so many tasks queues.
    pub(super) fn needs(self, lane: &Lane, shards: Shards) -> Vec<Need> {
        let (publish, consume, listen): (&[_], Vec<_>, _) = match self {
            Self::Operator => {
                let bind = [WORK, RESULTS, DEAD, FACTS].map(Need::Bind);
                return [Need::DeclareAll, Need::ReadJournal].into_iter().chain(bind).collect();
            }
            Self::Producer => (&[WORK, RESULTS, FACTS, EVENTS], Vec::new(), true),
            Self::Worker => (
                &[WORK, RESULTS, DEAD, EVENTS],
                shards.queues().chain([QueueRole::Again, QueueRole::Suspect]).collect(),
                false,
            ),
            Self::Sink => {
                (&[WORK, RESULTS, FACTS, DEAD, EVENTS], vec![QueueRole::Results, QueueRole::Dead], true)
            }
        };
        let publish = publish.iter().map(|exchange| Need::Publish(exchange));
        let consume = consume.iter().map(|role| Need::Consume(role.of(lane)));
        let listen = listen.then_some(Need::Listen);
        publish.chain(consume).chain([Need::ReadJournal]).chain(listen).collect()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Producer => "producer",
            Self::Worker => "worker",
            Self::Sink => "sink",
        })
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
    use crate::topology::{EVENTS_QUEUE, JOURNAL};

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Right {
        Configure,
        Write,
        Read,
    }

    const RIGHTS: [Right; 3] = [Right::Configure, Right::Write, Right::Read];

    fn in_the_house(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    /// The expressions that the script sets for a part's user, one for each of [`RIGHTS`].
    fn set_by_the_script(part: Part, lane: &str) -> [String; 3] {
        let mut script = Command::new(in_the_house("deploy/rabbitmq-permissions"));
        let printed = script.args(["--dry-run", "--prefix", "", "--lane", lane]).output().unwrap();
        assert!(printed.status.success(), "{printed:?}");
        let printed = String::from_utf8(printed.stdout).unwrap();
        let user = format!("-{part}");
        let line = printed.lines().find(|line| line.split(' ').next().unwrap().ends_with(&user)).unwrap();
        line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
    }

    /// Whether a part needs that right on a thing of that name.
    fn is_needed(needs: &[Need], right: Right, name: &str) -> bool {
        needs.iter().any(|need| match need {
            Need::Publish(exchange) => right == Right::Write && name == *exchange,
            Need::Consume(queue) => right == Right::Read && name == queue.to_string(),
            Need::ReadJournal => right == Right::Read && name == JOURNAL,
            Need::Listen => name.starts_with(EVENTS_QUEUE) || right == Right::Read && name == EVENTS,
            Need::DeclareAll => name.starts_with("gristmill."),
            Need::Bind(exchange) => right == Right::Read && name == *exchange,
        })
    }

    #[test]
    fn the_script_gives_each_part_what_it_needs_and_nothing_else() {
        let (lane, other): (Lane, Lane) = ("night".parse().unwrap(), "nights".parse().unwrap());
        let all = Shards::new(gristmill_shared::SHARDS_MAX).unwrap();
        let roles = || QueueRole::ALL.into_iter().chain(all.queues());
        let queues = roles().flat_map(|role| [role.of(&lane).to_string(), role.of(&other).to_string()]);
        let ours = [WORK, RESULTS, FACTS, DEAD, EVENTS, JOURNAL].map(str::to_owned);
        // The default exchange goes by the name of amq.default.
        let others =
            ["amq.default", "amq.topic", "amq.gen-1", "gristmill", "gristmill.", "mine", "my.gristmill.work"];
        let own = format!("{EVENTS_QUEUE}01");
        let names: Vec<_> = queues
            .chain(ours)
            .chain(others.map(str::to_owned))
            .chain([own, "gristmill.eventsx".into()])
            .collect();
        for part in Part::ALL {
            let needs = part.needs(&lane, all);
            let set = set_by_the_script(part, "night").map(|set| Regex::new(&set).unwrap());
            for (right, set) in RIGHTS.into_iter().zip(set) {
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
    fn the_protocol_shows_what_the_script_sets() {
        let page = std::fs::read_to_string(in_the_house("docs/protocol.md")).unwrap();
        for part in Part::ALL {
            let start = format!("| {part}");
            let is_its = |line: &&str| line.starts_with(&start) && line.contains("| `^");
            let row = page.lines().find(is_its).unwrap_or_else(|| panic!("no row for the {part}"));
            let shown: Vec<_> = row.split(" | ").skip(1).collect();
            let plain =
                |cell: &str| cell.trim_matches([' ', '|', '`']).replace("\\|", "|").replace("LANE", "night");
            let shown: Vec<_> = shown.into_iter().map(plain).collect();
            assert_eq!(shown, set_by_the_script(part, "night"), "{part}");
        }
    }
}
