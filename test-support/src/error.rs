//! Errors of a private node.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use super::node_dir::PACKAGED_SERVER;

/// An error while a private node is started or used.
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
    #[error("{what} ended before the node was ready (starts tried: {tries}); its last output:\n{log}")]
    Ended {
        /// The process that ended.
        what: &'static str,
        /// The number of starts.
        tries: u32,
        /// The last lines of the node's output and log.
        log: String,
    },
    /// The node neither became ready nor ended.
    #[error("rabbitmq-server was not ready within {} s and is killed; its last output:\n{log}", waited.as_secs())]
    NotReady {
        /// The duration of the wait.
        waited: Duration,
        /// The last lines of the node's output and log.
        log: String,
    },
    /// The node did not shut down gracefully.
    #[error("rabbitmq-server did not stop within {} s and was killed (hint: is it paused?)", waited.as_secs())]
    NotStopped {
        /// The duration of the wait.
        waited: Duration,
    },
    /// The node is down.
    #[error("cannot {operation} the node: it is down (hint: restart it first)")]
    NotRunning {
        /// The operation that was requested.
        operation: &'static str,
    },
    /// A tool failed.
    #[error("{command}: {status}: {output}")]
    Ctl {
        /// The name of the tool and its arguments.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its output.
        output: String,
    },
    /// The operating system refused an operation.
    #[error("cannot {operation}")]
    System {
        /// The operation.
        operation: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// Returns a function that adds the operation to an error of the operating system.
pub(super) fn cannot(operation: &'static str) -> impl FnOnce(io::Error) -> LocalBrokerError {
    move |source| LocalBrokerError::System { operation, source }
}
