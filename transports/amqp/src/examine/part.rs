//! What each part in a fleet needs to be allowed.

use std::fmt;

use gristmill_shared::{Lane, Queue, QueueRole};

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
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Producer, Self::Worker, Self::Sink, Self::Operator];

    pub(super) fn needs(self, lane: &Lane) -> Vec<Need> {
        let (publish, consume, listen): (&[_], &[_], _) = match self {
            Self::Operator => return vec![Need::DeclareAll, Need::ReadJournal],
            Self::Producer => (&[WORK, RESULTS, FACTS, EVENTS], &[], true),
            Self::Worker => (
                &[WORK, RESULTS, DEAD, EVENTS],
                &[QueueRole::Tasks, QueueRole::Again, QueueRole::Suspect],
                false,
            ),
            Self::Sink => {
                (&[WORK, RESULTS, FACTS, DEAD, EVENTS], &[QueueRole::Results, QueueRole::Dead], true)
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
