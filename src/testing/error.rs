//! What can go wrong with a private node.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use super::node_dir::PACKAGED_SERVER;

/// Why there is no private node, or why it did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalBrokerError {
    /// There is no RabbitMQ server on this machine.
    #[error(
        "no RabbitMQ on this machine: neither {PACKAGED_SERVER} nor a rabbitmq-server in PATH \
         (hint: apt-get install rabbitmq-server)"
    )]
    NotInstalled,
    /// The node ended while it was being started.
    #[error("{what} ended before the node was ready (starts tried: {tries}); its last words:\n{log}")]
    Ended {
        /// Which process ended.
        what: &'static str,
        /// How often it was tried.
        tries: u32,
        /// The end of the node's output and log.
        log: String,
    },
    /// The node neither became ready nor ended.
    #[error("rabbitmq-server was not ready within {} s and is killed; its last words:\n{log}", waited.as_secs())]
    NotReady {
        /// For how long we waited.
        waited: Duration,
        /// The end of the node's output and log.
        log: String,
    },
    /// The node did not stop in order.
    #[error("rabbitmq-server did not stop within {} s and was killed (hint: is it paused?)", waited.as_secs())]
    NotStopped {
        /// For how long we waited.
        waited: Duration,
    },
    /// The node is down.
    #[error("cannot {asked} the node: it is down (hint: restart it first)")]
    NotRunning {
        /// What was asked of it.
        asked: &'static str,
    },
    /// A tool failed.
    #[error("{command}: {status}: {said}")]
    Ctl {
        /// Its name and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        said: String,
    },
    /// The system refused something.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Says what was being done when the system refused.
pub(super) fn cannot(doing: &'static str) -> impl FnOnce(io::Error) -> LocalBrokerError {
    move |source| LocalBrokerError::System { doing, source }
}
