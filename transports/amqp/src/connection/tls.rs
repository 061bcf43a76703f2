//! TLS: trusted CAs, the client certificate, and errors with hints.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::{
    AlertDescription, CertificateError, InconsistentKeys,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{Error as PemError, PemObject},
    },
};

const CA_HINT: &str =
    "--tls-ca FILE names the CA that signed the broker's certificate; without it the system's CAs count";
const CLIENT_CERTIFICATE_HINT: &str =
    "see --tls-cert, and which CA the broker trusts (`cacertfile` in its configuration)";
const CLOCK_HINT: &str = "renew it on the broker, or correct a wrong clock";
const PORT_HINT: &str = "without TLS it is amqp://; RabbitMQ's port for TLS is 5671";

/// Files of trusted CAs and of the client's identity. They are read for each connection, so that
/// renewed ones take effect.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsSettings {
    /// Trusted CAs; those of the system if `None`.
    pub(crate) ca: Option<PathBuf>,
    /// The client certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// A defect of the files. The text has a hint.
#[derive(Debug)]
pub(crate) struct TlsFileError(String);

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsFileError {}

impl TlsSettings {
    /// Reads the files. Blocks, for milliseconds.
    ///
    /// # Errors
    /// A file cannot be read, holds nothing usable, or does not match another one.
    pub(crate) fn connector(&self) -> Result<RustlsConnector, TlsFileError> {
        let roots = match &self.ca {
            Some(ca) => RustlsConnectorConfig::default().with_parsable_certificates(read_certificates("CA", ca)?),
            None => RustlsConnectorConfig::new_with_native_certs().map_err(|why| {
                TlsFileError(format!(
                    "this system has no trusted CAs: {why} (hint: install ca-certificates, or name the broker's CA with \
                     --tls-ca FILE)"
                ))
            })?,
        };
        let Some((cert, key)) = &self.identity else {
            return roots.connector_with_no_client_auth().map_err(|why| self.file_error(&why));
        };
        let chain = read_certificates("certificate", cert)?;
        roots.connector_with_single_cert(chain, read_private_key(key)?).map_err(|why| self.file_error(&why))
    }

    fn file_error(&self, why: &io::Error) -> TlsFileError {
        let text = match (&self.identity, inner_error::<rustls::Error>(why)) {
            (Some((cert, key)), Some(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch))) => {
                format!(
                    "the key in {} does not match the certificate in {} (hint: our own certificate comes first in the file, its \
                 issuers after it)",
                    key.display(),
                    cert.display()
                )
            }
            (Some((cert, _)), Some(_)) => {
                format!("the certificate in {} cannot be used: {why} (hint: see --tls-cert)", cert.display())
            }
            _ => {
                let ca = self.ca.as_deref().unwrap_or(Path::new("the system's store"));
                format!("no certificate in {} can be read: {why} (hint: {CA_HINT})", ca.display())
            }
        };
        TlsFileError(text)
    }
}

fn read_file(what: &str, path: &Path) -> Result<Vec<u8>, TlsFileError> {
    fs::read(path).map_err(|why| {
        let path = path.display();
        TlsFileError(format!(
            "cannot read the {what} file {path}: {why} (hint: it is read for each connection)"
        ))
    })
}

fn read_certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read_file(what, path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsFileError(format!(
            "the {what} file {} holds no certificate (hint: expected PEM, -----BEGIN CERTIFICATE-----)",
            path.display()
        ))),
    }
}

fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let text = read_file("key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|why| {
        let locked = text.windows(9).any(|word| word == b"ENCRYPTED");
        let hint = match why {
            PemError::NoItemsFound if locked => {
                "it has a passphrase, which cannot be entered here; `openssl pkey -in FILE -out NEW` removes it"
            }
            _ => "expected PEM, -----BEGIN PRIVATE KEY-----",
        };
        TlsFileError(format!("the key file {} holds no private key that can be used (hint: {hint})", path.display()))
    })
}

fn inner_error<T: std::error::Error + 'static>(error: &io::Error) -> Option<&T> {
    error.get_ref()?.downcast_ref()
}

/// A failed TLS handshake by its cause, with a hint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TlsFailure {
    /// The local files.
    Files(String),
    /// The peer speaks no TLS, or no version that is supported.
    Protocol(String),
    /// One of the two peers does not trust the other.
    Trust(String),
}

/// Returns the meaning of an error, if it comes from TLS.
pub(crate) fn classify_tls_error(error: &io::Error) -> Option<TlsFailure> {
    if let Some(files) = inner_error::<TlsFileError>(error) {
        return Some(TlsFailure::Files(files.to_string()));
    }
    use rustls::Error;
    let failure = match inner_error::<Error>(error)? {
        Error::InvalidCertificate(why) => {
            let (why, hint) = describe_certificate_error(why);
            TlsFailure::Trust(format!("its certificate {why} (hint: {hint})"))
        }
        Error::AlertReceived(alert) => {
            let (why, hint) = describe_alert(*alert);
            TlsFailure::Trust(format!("{why} (hint: {hint})"))
        }
        Error::InvalidMessage(_) => {
            TlsFailure::Protocol(format!("it does not speak TLS there (hint: {PORT_HINT})"))
        }
        why => TlsFailure::Protocol(format!("{why} (hint: TLS 1.2 or 1.3 is needed; {PORT_HINT})")),
    };
    Some(failure)
}

/// Describes the defect of the broker's certificate.
fn describe_certificate_error(why: &CertificateError) -> (String, &'static str) {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ("was not signed by a CA that we trust".into(), CA_HINT)
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| plain_name(name)).collect();
            let names = if names.is_empty() {
                "no host at all (a CN does not count)".into()
            } else {
                names.join(", ")
            };
            let host = match expected {
                ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
                name => name.to_str().into_owned(),
            };
            let hint = "use a name of the certificate in the URL, or a certificate with this name";
            (format!("is not for {host:?}, but for {names}"), hint)
        }
        CertificateError::ExpiredContext { time, not_after } => {
            (format!("has expired, {} ago", format_age(*not_after, *time)), CLOCK_HINT)
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            (format!("is not valid yet, only in {}", format_age(*time, *not_before)), CLOCK_HINT)
        }
        CertificateError::Revoked => ("was revoked".into(), CLOCK_HINT),
        other => (format!("is not acceptable: {other}"), CA_HINT),
    }
}

/// Describes why the broker refuses the client.
fn describe_alert(alert: AlertDescription) -> (String, &'static str) {
    let ours =
        |why: &str| (format!("the broker does not accept our certificate: {why}"), CLIENT_CERTIFICATE_HINT);
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            ("the broker wants a client certificate".into(), "--tls-cert FILE and --tls-key FILE")
        }
        AlertDescription::UnknownCA => ours("it was not signed by a CA that the broker trusts"),
        AlertDescription::CertificateExpired => ours("it has expired, or is not valid yet"),
        AlertDescription::CertificateRevoked => ours("it was revoked"),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => ours("it gives no other reason"),
        AlertDescription::HandshakeFailure => (
            "the broker aborts the handshake".into(),
            "it may want a client certificate, --tls-cert FILE and --tls-key FILE; see its log",
        ),
        other => (format!("the broker aborts the handshake: {other:?}"), "see its log for the reason"),
    }
}

/// Extracts the name from the verifier's output: `DnsName("localhost")`, `IpAddress(127.0.0.1)`.
fn plain_name(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner.trim_end_matches(')'));
    inner.trim_matches('"')
}

/// Formats the time between two instants with one unit.
fn format_age(from: UnixTime, to: UnixTime) -> String {
    let between = Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()));
    match between.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(why: impl Into<rustls::Error>) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, why.into())
    }

    fn text_of(why: impl Into<rustls::Error>) -> String {
        match classify_tls_error(&error(why)).unwrap() {
            TlsFailure::Files(text) | TlsFailure::Protocol(text) | TlsFailure::Trust(text) => text,
        }
    }

    #[test]
    fn each_tls_failure_has_a_hint() {
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let expected = ServerName::try_from("10.0.0.1").unwrap();
        let presented = vec![r#"DnsName("rabbit")"#.into(), "IpAddress(127.0.0.1)".into()];
        let cases = [
            (text_of(CertificateError::UnknownIssuer), "not signed by a CA that we trust"),
            (
                text_of(CertificateError::ExpiredContext { time: at(864_000), not_after: at(0) }),
                "expired, 10 days ago",
            ),
            (
                text_of(CertificateError::NotValidYetContext { time: at(0), not_before: at(3_600) }),
                "only in 60 min",
            ),
            (
                text_of(CertificateError::NotValidForNameContext { expected, presented }),
                r#"is not for "10.0.0.1", but for rabbit, 127.0.0.1"#,
            ),
            (text_of(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)), "--tls-cert FILE"),
            (
                text_of(rustls::Error::AlertReceived(AlertDescription::UnknownCA)),
                "not accept our certificate",
            ),
            (text_of(rustls::InvalidMessage::InvalidContentType), "does not speak TLS"),
        ];
        for (text, part) in &cases {
            assert!(text.contains(part) && text.contains("(hint: "), "{part:?} is missing: {text}");
        }
    }

    #[test]
    fn other_errors_are_not_tls() {
        assert_eq!(classify_tls_error(&io::ErrorKind::ConnectionRefused.into()), None);
        assert_eq!(classify_tls_error(&io::Error::other("something")), None);
    }
}
