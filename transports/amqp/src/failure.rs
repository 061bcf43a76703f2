//! What lapin's errors mean to us.

use std::io;

use gristmill_shared::TransportError;
use lapin::{ErrorKind, protocol::AMQPErrorKind};

use crate::connection::tls::{self, Trouble};

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

/// The broker's reply codes for connections that it ends over what it was sent.
const OVER_WHAT_IT_WAS_SENT: std::ops::RangeInclusive<u16> = 501..=505;

/// Whether it was over something that we sent that the broker ended the channel, or the connection. Whatever else ends
/// those says nothing of what was on its way.
pub(crate) fn over_what_was_sent(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(_) => true,
            AMQPErrorKind::Hard(_) => OVER_WHAT_IT_WAS_SENT.contains(&error.get_id()),
        },
        _ => false,
    }
}

/// What somebody wanted, and so which rights it takes; RabbitMQ before 4 does not name the one that is lacking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// Takes none.
    Free,
    /// Takes `configure`.
    DeclareExchange,
    /// Takes `configure`, and `write` on an exchange that its dead letters go to.
    DeclareQueue,
    /// Takes `write` on the queue and `read` on the exchange.
    Bind,
    Read,
    Publish,
}

/// If the broker does not let us.
pub(crate) fn denied(transport: &str, wish: Wish, error: &lapin::Error) -> Option<TransportError> {
    if !matches!(code(error), Some(ACCESS_REFUSED | NOT_ALLOWED)) {
        return None;
    }
    let (transport, reason) = (transport.into(), reason(error));
    Some(match lacks(wish, &reason) {
        Some(lacks) => TransportError::Forbidden { transport, lacks },
        None => TransportError::Denied { transport, reason },
    })
}

/// Who lacks which right on what, out of RabbitMQ's `… access to queue 'Q' in vhost 'V' refused for user 'U'`.
pub(crate) fn lacks(wish: Wish, reason: &str) -> Option<String> {
    let (before, rest) = reason.split_once("access to ")?;
    let (kind, rest) = rest.split_once(" '")?;
    let (name, rest) = rest.split_once("' in vhost '")?;
    let user = rest.split_once("refused for user '")?.1.trim_end_matches('\'');
    let ours = match (wish, kind) {
        (Wish::DeclareQueue, "exchange") | (Wish::Bind, "queue") | (Wish::Publish, _) => "write",
        (Wish::DeclareQueue | Wish::DeclareExchange, _) => "configure",
        (Wish::Bind | Wish::Read, _) => "read",
        (Wish::Free, _) => "needed",
    };
    let said = before.rsplit([' ', '-']).find(|word| !word.is_empty());
    let right = said.filter(|said| ["configure", "write", "read"].contains(said)).unwrap_or(ours);
    Some(format!("the user {user} lacks the {right} right on the {kind} {name}"))
}

/// Out of RabbitMQ's `… message size 20 is larger than configured max size 10`.
pub(crate) fn size_limit(why: &str) -> Option<usize> {
    why.split_once("message size ")?.1.split_once("max size ")?.1.trim().parse().ok()
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
        _ => denied(transport, Wish::Free, error),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

    use super::*;

    #[test]
    fn only_what_the_broker_says_of_it_speaks_against_what_was_sent() {
        let said = |kind| ErrorKind::ProtocolError(AMQPError::new(kind, "".into())).into();
        for (error, over_it) in [
            (said(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)), true),
            (said(AMQPErrorKind::Hard(AMQPHardError::SYNTAXERROR)), true),
            (said(AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED)), false),
            (said(AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR)), false),
            (io::Error::from(io::ErrorKind::ConnectionReset).into(), false),
            (ErrorKind::MissingHeartbeatError.into(), false),
        ] {
            assert_eq!(over_what_was_sent(&error), over_it, "{error}");
        }
    }

    #[test]
    fn a_refusal_names_the_user_the_right_and_the_thing() {
        let old =
            "ACCESS_REFUSED - access to queue 'gristmill.default.tasks' in vhost '/' refused for user 'sue'";
        let new =
            "ACCESS_REFUSED - read access to exchange 'gristmill.events' in vhost 'v' refused for user 'sue'";
        let told = lacks(Wish::Read, old).unwrap();
        assert_eq!(told, "the user sue lacks the read right on the queue gristmill.default.tasks");
        assert!(lacks(Wish::DeclareQueue, old).unwrap().contains("lacks the configure right"));
        assert!(lacks(Wish::Bind, old).unwrap().contains("lacks the write right"));
        let told = lacks(Wish::Bind, new).unwrap();
        assert_eq!(told, "the user sue lacks the read right on the exchange gristmill.events");
    }

    #[test]
    fn who_is_not_let_in_lacks_no_single_right() {
        assert_eq!(
            lacks(Wish::Free, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"),
            None
        );
    }
}
