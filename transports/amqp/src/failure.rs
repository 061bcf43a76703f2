//! The meaning of lapin's errors.

use std::io;

use gristmill_shared::TransportError;
use lapin::{ErrorKind, protocol::AMQPErrorKind};

use crate::connection::{TlsFailure, classify_tls_error};

/// The broker's reply code for a missing permission.
pub(crate) const ACCESS_REFUSED: u16 = 403;
/// The broker's reply code for a queue or exchange that does not exist.
pub(crate) const NOT_FOUND: u16 = 404;
/// The broker's reply code for different arguments and oversized bodies, among others.
pub(crate) const PRECONDITION_FAILED: u16 = 406;
/// The broker's reply code for an authentication mechanism that it does not offer.
pub(crate) const COMMAND_INVALID: u16 = 503;
/// The broker's reply code for a virtual host that does not exist, or that the user may not use.
pub(crate) const NOT_ALLOWED: u16 = 530;
/// The broker's reply code for a feature that it does not have.
pub(crate) const NOT_IMPLEMENTED: u16 = 540;

/// Returns the broker's reply code, if the broker reported the error.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Returns the message of the broker or the operating system, in one line.
pub(crate) fn reason(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        // lapin's error for the end of the stream.
        ErrorKind::IOError(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
            "the broker closed the connection".into()
        }
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "the broker sent no heartbeat".into(),
        ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..) => {
            "the connection is closed".into()
        }
        ErrorKind::ParsingError(_) => "it does not speak AMQP".into(),
        _ => error.to_string(),
    }
}

/// True if the connection failed, and not only one of its channels.
pub(crate) fn is_connection_error(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => matches!(error.kind(), AMQPErrorKind::Hard(_)),
        ErrorKind::IOError(_)
        | ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::MissingHeartbeatError
        | ErrorKind::ParsingError(_)
        | ErrorKind::InvalidConnectionState(_) => true,
        _ => false,
    }
}

/// Reply codes of connections that the broker closes because of something it received.
const MESSAGE_ERROR_CODES: std::ops::RangeInclusive<u16> = 501..=505;

/// True if the broker closed the channel or the connection because of something it received. Other
/// failures are not evidence against the messages in flight.
pub(crate) fn is_caused_by_message(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(_) => true,
            AMQPErrorKind::Hard(_) => MESSAGE_ERROR_CODES.contains(&error.get_id()),
        },
        _ => false,
    }
}

/// A requested operation, which implies the permissions it needs; RabbitMQ before 4 does not name
/// the missing one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Needs none.
    Unrestricted,
    /// Needs `configure`.
    DeclareExchange,
    /// Needs `configure`, and `write` on its dead-letter exchange.
    DeclareQueue,
    /// Needs `write` on the queue and `read` on the exchange.
    Bind,
    Read,
    Publish,
}

/// Returns the error of an operation that the broker refused to this user, if it is one.
pub(crate) fn as_access_error(
    transport: &str,
    operation: Operation,
    error: &lapin::Error,
) -> Option<TransportError> {
    if !matches!(reply_code(error), Some(ACCESS_REFUSED | NOT_ALLOWED)) {
        return None;
    }
    let (transport, reason) = (transport.into(), reason(error));
    Some(match missing_permission(operation, &reason) {
        Some(lacks) => TransportError::PermissionDenied { transport, lacks },
        None => TransportError::AuthenticationFailed { transport, reason },
    })
}

/// Extracts user, permission and entity from RabbitMQ's `… access to queue 'Q' in vhost 'V' refused
/// for user 'U'`.
pub(crate) fn missing_permission(operation: Operation, reason: &str) -> Option<String> {
    let (before, rest) = reason.split_once("access to ")?;
    let (kind, rest) = rest.split_once(" '")?;
    let (name, rest) = rest.split_once("' in vhost '")?;
    let user = rest.split_once("refused for user '")?.1.trim_end_matches('\'');
    let ours = match (operation, kind) {
        (Operation::DeclareQueue, "exchange") | (Operation::Bind, "queue") | (Operation::Publish, _) => {
            "write"
        }
        (Operation::DeclareQueue | Operation::DeclareExchange, _) => "configure",
        (Operation::Bind | Operation::Read, _) => "read",
        (Operation::Unrestricted, _) => "needed",
    };
    let said = before.rsplit([' ', '-']).find(|word| !word.is_empty());
    let right = said.filter(|said| ["configure", "write", "read"].contains(said)).unwrap_or(ours);
    Some(format!("the user {user} lacks the {right} right on the {kind} {name}"))
}

/// Extracts the limit from RabbitMQ's `… message size 20 is larger than configured max size 10`.
pub(crate) fn size_limit(why: &str) -> Option<usize> {
    why.split_once("message size ")?.1.split_once("max size ")?.1.trim().parse().ok()
}

/// Returns the error of a connection attempt that a retry would not change, if it is one.
pub(crate) fn as_fatal(transport: &str, error: &lapin::Error) -> Option<TransportError> {
    let invalid = |why: String| TransportError::Invalid(format!("cannot talk to {transport}: {why}"));
    match error.kind() {
        ErrorKind::IOError(error) => match classify_tls_error(error)? {
            TlsFailure::Files(why) => Some(TransportError::Invalid(why)),
            TlsFailure::Protocol(why) => Some(invalid(why)),
            TlsFailure::Trust(reason) => {
                Some(TransportError::TlsFailed { transport: transport.into(), reason })
            }
        },
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => {
            let why = reason(error);
            Some(invalid(format!("{why} (hint: expected an AMQP 0-9-1 broker; with TLS it is amqps://)")))
        }
        ErrorKind::ProtocolError(refusal) if refusal.get_id() == COMMAND_INVALID => {
            let reason = format!(
                "{} (hint: for EXTERNAL it needs the plugin rabbitmq_auth_mechanism_ssl and `auth_mechanisms.1 = EXTERNAL`)",
                reason(error)
            );
            Some(TransportError::TlsFailed { transport: transport.into(), reason })
        }
        _ => as_access_error(transport, Operation::Unrestricted, error),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

    use super::*;

    /// A lost connection is no evidence against the messages in flight.
    #[test]
    fn only_broker_replies_blame_messages() {
        let said = |kind| ErrorKind::ProtocolError(AMQPError::new(kind, "".into())).into();
        for (error, expected) in [
            (said(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)), true),
            (said(AMQPErrorKind::Hard(AMQPHardError::SYNTAXERROR)), true),
            (said(AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED)), false),
            (said(AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR)), false),
            (io::Error::from(io::ErrorKind::ConnectionReset).into(), false),
            (ErrorKind::MissingHeartbeatError.into(), false),
        ] {
            assert_eq!(is_caused_by_message(&error), expected, "{error}");
        }
    }

    #[test]
    fn refusal_names_user_right_and_entity() {
        let old =
            "ACCESS_REFUSED - access to queue 'gristmill.default.tasks' in vhost '/' refused for user 'sue'";
        let new =
            "ACCESS_REFUSED - read access to exchange 'gristmill.events' in vhost 'v' refused for user 'sue'";
        let missing = missing_permission(Operation::Read, old).unwrap();
        assert_eq!(missing, "the user sue lacks the read right on the queue gristmill.default.tasks");
        assert!(
            missing_permission(Operation::DeclareQueue, old).unwrap().contains("lacks the configure right")
        );
        assert!(missing_permission(Operation::Bind, old).unwrap().contains("lacks the write right"));
        let missing = missing_permission(Operation::Bind, new).unwrap();
        assert_eq!(missing, "the user sue lacks the read right on the exchange gristmill.events");
    }

    #[test]
    fn failed_login_lacks_no_right() {
        assert_eq!(
            missing_permission(
                Operation::Unrestricted,
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"
            ),
            None
        );
    }
}
