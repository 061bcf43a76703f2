//! The pair of connections to the broker: opened, watched, replaced after a loss, and closed.

mod backoff;
mod channel;
mod credentials;
mod degraded;
mod generation;
mod handle;
mod runtime;
mod supervisor;
mod termination;
mod tls;

pub use self::credentials::Credentials;
pub(crate) use self::{
    backoff::{BACKOFF_RESET_AFTER, ReconnectBackoff},
    channel::{OwnedChannel, close_channel},
    degraded::DegradedGuard,
    generation::{ConnectError, Generation, PROBE_ROUTING_KEY, REPLY_TIMEOUT},
    handle::{ConnectionHandle, CurrentConnection},
    tls::{TlsFailure, TlsSettings, classify_tls_error},
};
