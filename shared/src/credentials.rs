//! Credentials for a broker that are not in its URL.

use std::{fmt, path::PathBuf};

/// Credentials that are not in the URL. `Debug` does not show the password.
///
/// A transport that cannot use one of them refuses it: it never ignores a credential.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The password of the URL's user, so that the URL can be shown to anyone.
    pub password: Option<String>,
    /// A PEM file with the CAs that may have signed the broker's certificate, *instead* of the
    /// system's. Needs a URL with TLS, as do the next two fields.
    pub tls_ca: Option<PathBuf>,
    /// A PEM file with the client certificate and its issuers. If the URL names no user, the
    /// certificate authenticates.
    pub tls_cert: Option<PathBuf>,
    /// A PEM file with the key of that certificate, without a passphrase.
    pub tls_key: Option<PathBuf>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password, tls_ca, tls_cert, tls_key } = self;
        f.debug_struct("Credentials")
            .field("password", &password.as_ref().map(|_| "***"))
            .field("tls_ca", tls_ca)
            .field("tls_cert", tls_cert)
            .field("tls_key", tls_key)
            .finish()
    }
}
