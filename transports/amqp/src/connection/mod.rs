//! The pair of connections to the broker: made, watched, replaced when lost, and closed.

pub(crate) mod backoff;
pub(crate) mod channel;
pub(crate) mod credentials;
pub(crate) mod degraded;
pub(crate) mod generation;
pub(crate) mod handle;
pub(crate) mod runtime;
pub(crate) mod supervisor;
pub(crate) mod termination;
pub(crate) mod tls;
