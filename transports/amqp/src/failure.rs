//! What lapin's errors mean to us.

use std::io;

use gristmill_shared::TransportError;
use lapin::{ErrorKind, protocol::AMQPErrorKind};

use crate::tls::{self, Trouble};

/// The broker's reply code for "you may not".
pub(crate) const ACCESS_REFUSED: u16 = 403;
/// The broker's reply code for a queue or exchange that is not there.
pub(crate) const NOT_FOUND: u16 = 404;
/// The broker's reply code for, among others, other arguments, and bodies that are too large.
pub(crate) const PRECONDITION_FAILED: u16 = 406;
/// The broker's reply code for a way to log in that it does not offer.
pub(crate) const COMMAND_INVALID: u16 = 503;
/// The broker's reply code for a virtual host that is not there, or not for us.
pub(crate) const NOT_ALLOWED: u16 = 530;
/// The broker's reply code for what it cannot do.
pub(crate) const NOT_IMPLEMENTED: u16 = 540;

/// The broker's reply code, if it was the broker that complained.
pub(crate) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// What the broker or the operating system said, in one line.
pub(crate) fn reason(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        // lapin's word for the end of the stream.
        ErrorKind::IOError(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
            "the broker hung up".into()
        }
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "the broker fell silent".into(),
        ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..) => {
            "the connection is closed".into()
        }
        ErrorKind::ParsingError(_) => "it does not speak AMQP".into(),
        _ => error.to_string(),
    }
}

/// Whether it is the connection that failed, and not one channel of it.
pub(crate) fn of_the_connection(error: &lapin::Error) -> bool {
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

/// If the broker does not let us.
pub(crate) fn denied(transport: &str, error: &lapin::Error) -> Option<TransportError> {
    matches!(code(error), Some(ACCESS_REFUSED | NOT_ALLOWED))
        .then(|| TransportError::Denied { transport: transport.into(), reason: reason(error) })
}

/// If connecting again would end no better.
pub(crate) fn hopeless(transport: &str, error: &lapin::Error) -> Option<TransportError> {
    let because = |why: String| TransportError::Invalid(format!("cannot talk to {transport}: {why}"));
    match error.kind() {
        ErrorKind::IOError(error) => match tls::trouble(error)? {
            Trouble::Files(why) => Some(TransportError::Invalid(why)),
            Trouble::Speech(why) => Some(because(why)),
            Trouble::Trust(reason) => Some(TransportError::Untrusted { transport: transport.into(), reason }),
        },
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => {
            let why = reason(error);
            Some(because(format!("{why} (hint: expected an AMQP 0-9-1 broker; with TLS it is amqps://)")))
        }
        ErrorKind::ProtocolError(refusal) if refusal.get_id() == COMMAND_INVALID => {
            let reason = format!(
                "{} (hint: for EXTERNAL it needs the plugin rabbitmq_auth_mechanism_ssl and `auth_mechanisms.1 = EXTERNAL`)",
                reason(error)
            );
            Some(TransportError::Untrusted { transport: transport.into(), reason })
        }
        _ => denied(transport, error),
    }
}
