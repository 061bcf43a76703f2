//! Access to the broker: the rights of each role's user, and TLS.

pub(crate) mod rights;
mod tls;
