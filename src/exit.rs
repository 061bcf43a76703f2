//! The end of a program: a documented exit code, and one or two lines with the reason.

use std::fmt;

use gristmill_ledger::LedgerError;
use gristmill_producer::{CursorError, ProducerError};
use gristmill_shared::{Exit, PublishError, TransportError, error_chain};
use gristmill_sink::SinkError;
use gristmill_worker::WorkerError;

use crate::library::PipelineError;

/// The reason why a command failed, with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// Appends to the message.
    pub(crate) fn append(self, text: impl fmt::Display) -> Self {
        Self { exit: self.exit, message: format!("{}{text}", self.message) }
    }

    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
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
                "\n(hint: is a broker running there? pass another with --broker or GRISTMILL_BROKER; \
                 `gristmill run` needs none)"
            }
            TransportError::AuthenticationFailed { reason, .. } if !reason.contains("(hint: ") => {
                "\n(hint: check the user, the password and the rest of the URL in --broker or GRISTMILL_BROKER, and \
                 GRISTMILL_PASSWORD)"
            }
            TransportError::PermissionDenied { lacks, .. } if !lacks.contains("(hint: ") => {
                "\n(hint: each role has rights of its own; `gristmill doctor` shows what this user may do, and what \
                 gives it the rights)"
            }
            TransportError::Mismatch { .. } => {
                "\n(hint: another version made it; delete it on the broker when it is empty, or use another --lane)"
            }
            _ => "",
        };
        Self { exit, message: format!("{}{hint}", error_chain(&error)) }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Self::new(Exit::Broker, error_chain(&error))
    }
}

impl From<ProducerError> for Failure {
    fn from(error: ProducerError) -> Self {
        match error {
            ProducerError::Transport(error) => error.into(),
            ProducerError::Store(error) => error.into(),
            ProducerError::Cursor(error) => error.into(),
            ProducerError::Plan(_)
            | ProducerError::InputUnavailable { .. }
            | ProducerError::Changed(_)
            | ProducerError::TooFewShards { .. } => Self::usage(error),
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

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::usage(error_chain(&error))
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        let exit = match error {
            SinkError::Transport(error) => return error.into(),
            SinkError::Store(_) => Exit::Broker,
            SinkError::ThreadStart(_) | SinkError::ThreadDied(_) => Exit::Bug,
            _ => Exit::Usage,
        };
        Self::new(exit, error_chain(&error))
    }
}
