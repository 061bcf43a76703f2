//! The pair of connections to the broker: opened, watched, replaced after a loss, and closed.

mod channel;
mod current;
mod degraded;
mod generation;
mod handle;
mod login;
mod reconnect_backoff;
mod runtime;
mod supervisor;
mod termination;
mod tls;

pub(crate) use self::{
    channel::{OwnedChannel, REPLY_TIMEOUT, close_channel},
    current::CurrentConnection,
    degraded::DegradedGuard,
    generation::{ConnectError, Generation, PROBE_ROUTING_KEY},
    handle::ConnectionHandle,
    login::{enter_login, tls_settings},
    reconnect_backoff::ReconnectBackoff,
    tls::{TlsFailure, TlsSettings, classify_tls_error},
};
