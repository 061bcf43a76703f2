//! The roles that a program can take.

/// The roles of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Every role as a subcommand, and `run`, which is all of them in one process.
    All,
    /// Splits jobs.
    Producer,
    /// Runs tasks.
    Worker,
    /// Folds results.
    Sink,
}

impl Role {
    /// Returns the subcommand of a single role, None for [`Role::All`].
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Producer => Some("producer"),
            Self::Worker => Some("worker"),
            Self::Sink => Some("sink"),
        }
    }
}
