//! The pair of connections to the broker: opened, watched, replaced after a loss, and closed.

mod backoff;
mod channel;
mod current;
mod degraded;
mod generation;
mod handle;
mod login;
mod runtime;
mod supervisor;
mod termination;
mod tls;

pub(crate) use self::{
    backoff::{BACKOFF_RESET_AFTER, ReconnectBackoff},
    channel::{OwnedChannel, REPLY_TIMEOUT, close_channel},
    current::CurrentConnection,
    degraded::DegradedGuard,
    generation::{ConnectError, Generation, PROBE_ROUTING_KEY},
    handle::ConnectionHandle,
    login::{enter_login, tls_settings},
    tls::{TlsFailure, TlsSettings, classify_tls_error},
};
