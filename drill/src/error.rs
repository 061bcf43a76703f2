//! Errors that keep a drill from running. Defects that it finds are in its account.

use std::io;

use gristmill_test_support::LocalBrokerError;

/// The reason that a drill could not run.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// A private broker did not start.
    #[error("no broker for the drill (hint: name one that is there with --broker; it is not harmed)")]
    Broker(#[from] LocalBrokerError),
    /// The system refused something.
    #[error("cannot {doing}")]
    System {
        /// The action that failed.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The fleet did not start.
    #[error("the fleet is not up after {waited_s} s: {missing} (hint: see the logs in {logs})")]
    NotUp {
        /// Seconds that the drill waited.
        waited_s: u64,
        /// The processes that are missing.
        missing: String,
        /// The directory of the logs.
        logs: String,
    },
    /// A user interrupted the drill before its fleet was started.
    #[error("interrupted")]
    Interrupted,
    /// A user interrupted the drill.
    #[error("interrupted; ledger and logs are kept in {kept}")]
    InterruptedAt {
        /// The drill's directory.
        kept: String,
    },
}

/// Returns a function that adds the failed action to a system error.
pub(super) fn system_error(doing: &'static str) -> impl FnOnce(io::Error) -> DrillError {
    move |source| DrillError::System { doing, source }
}
