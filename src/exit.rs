//! How a program ends: a documented code, and one or two lines that say why.

use std::{fmt, process::ExitCode};

use gristmill_producer::{CursorError, ProducerError};
use gristmill_shared::{StoreError, TransportError, error_chain};
use gristmill_sink::SinkError;
use gristmill_worker::WorkerError;

use crate::library::PipelineError;

/// The exit codes of every program of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// The job finished, but with failed tasks or with no answer; or a ledger does not add up; or a doctor found a problem.
    Incomplete = 1,
    /// The command line, the environment or a file named there is not usable.
    Usage = 2,
    /// The broker cannot be reached, or does not let us, or was lost for longer than `--give-up-after`.
    Broker = 3,
    /// A defect of the program.
    Bug = 4,
    /// Too many of a worker's threads are stuck in tasks that do not end; start it again.
    Stuck = 5,
    /// SIGINT or SIGTERM came, and what was under way was not ended in order.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    why: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, why: impl fmt::Display) -> Self {
        Self { exit, why: why.to_string() }
    }

    /// The same, and this.
    pub(crate) fn and(self, more: impl fmt::Display) -> Self {
        Self { exit: self.exit, why: format!("{}{more}", self.why) }
    }

    pub(crate) fn usage(why: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, why)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        let exit = match error {
            TransportError::Invalid(_) => Exit::Usage,
            _ => Exit::Broker,
        };
        let hint = match &error {
            TransportError::Unreachable { .. } => {
                "\n(hint: is a RabbitMQ running there? pass another with --broker or GRISTMILL_BROKER; \
                 `gristmill run` needs none)"
            }
            TransportError::Denied { reason, .. } if !reason.contains("(hint: ") => {
                "\n(hint: check the user, the password and the virtual host in --broker or GRISTMILL_BROKER, and \
                 GRISTMILL_PASSWORD)"
            }
            TransportError::Forbidden { lacks, .. } if !lacks.contains("(hint: ") => {
                "\n(hint: each role has rights of its own, which deploy/rabbitmq-permissions gives; \
                 `gristmill doctor` shows what this user may do)"
            }
            TransportError::Mismatch { .. } => {
                "\n(hint: another version made it; delete it on the broker when it is empty, or use another --lane)"
            }
            _ => "",
        };
        Self { exit, why: format!("{}{hint}", error_chain(&error)) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(Exit::Broker, error_chain(&error))
    }
}

impl From<ProducerError> for Failure {
    fn from(error: ProducerError) -> Self {
        match error {
            ProducerError::Transport(error) => error.into(),
            ProducerError::Store(error) => error.into(),
            ProducerError::Cursor(error) => error.into(),
            ProducerError::Plan(_) | ProducerError::Changed(_) | ProducerError::TooFewShards { .. } => {
                Self::usage(error)
            }
            ProducerError::Split(_) | ProducerError::NoAnswer { .. } => Self::new(Exit::Incomplete, error),
            error => Self::new(Exit::Bug, error_chain(&error)),
        }
    }
}

impl From<CursorError> for Failure {
    fn from(error: CursorError) -> Self {
        Self::usage(error_chain(&error))
    }
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Transport(error) => error.into(),
            WorkerError::Store(_) => Self::new(Exit::Broker, error_chain(&error)),
            WorkerError::Stuck { .. } => Self::new(Exit::Stuck, error),
            error => Self::new(Exit::Bug, error_chain(&error)),
        }
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Sink(error) => error.into(),
            PipelineError::Worker(error) => error.into(),
            PipelineError::EndedEarly => Self::new(Exit::Bug, error),
        }
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        let exit = match error {
            SinkError::Transport(error) => return error.into(),
            SinkError::Store(_) => Exit::Broker,
            SinkError::Thread(_) | SinkError::Died(_) => Exit::Bug,
            _ => Exit::Usage,
        };
        Self::new(exit, error_chain(&error))
    }
}
