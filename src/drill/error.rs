//! Why a drill could not be held. What it found wrong is no error but stands in its account.

use std::io;

use crate::testing::LocalBrokerError;

/// What kept the drill from being held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrillError {
    /// There is no private broker.
    #[error("no broker for the drill (hint: name one that is there with --broker; it is not harmed)")]
    Broker(#[from] LocalBrokerError),
    /// The system refused something.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The fleet did not start.
    #[error("the fleet is not up after {waited_s} s: {missing} (hint: see the logs in {logs})")]
    NotUp {
        /// For how long we waited.
        waited_s: u64,
        /// Who is missing, and what they said last.
        missing: String,
        /// Where the logs are.
        logs: String,
    },
    /// A person ended it before there was anything.
    #[error("interrupted")]
    Interrupted,
    /// A person ended it.
    #[error("interrupted; ledger and logs are kept in {kept}")]
    InterruptedAt {
        /// The drill's directory.
        kept: String,
    },
}

/// Says what was being done when the system refused.
pub(super) fn cannot(doing: &'static str) -> impl FnOnce(io::Error) -> DrillError {
    move |source| DrillError::System { doing, source }
}
