//! The roles of a fleet, as a broker's operator knows them.

use std::fmt;

/// A role in a fleet, which may have a user of its own on the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FleetRole {
    /// Submits jobs, cancels them and waits for them.
    Producer,
    /// Runs tasks.
    Worker,
    /// Folds results, and resends failed tasks.
    Sink,
    /// Creates the lanes, where the other roles may not.
    Operator,
}

impl FleetRole {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Producer, Self::Worker, Self::Sink, Self::Operator];
}

impl fmt::Display for FleetRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Producer => "producer",
            Self::Worker => "worker",
            Self::Sink => "sink",
        })
    }
}
