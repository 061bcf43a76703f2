//! TLS: whom we trust, who we are, and what is wrong if it fails.

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
const OURS_HINT: &str = "see --tls-cert, and which CA the broker trusts (`cacertfile` in its configuration)";
const CLOCK_HINT: &str = "renew it on the broker; or is a clock wrong?";
const PORT_HINT: &str = "without TLS it is amqp://; RabbitMQ's port for TLS is 5671";

/// Whom we trust and who we are, as files. They are read for each connection, so that renewed ones are found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    /// The CAs that count; those of the system if `None`.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with the files. The text has a hint.
#[derive(Debug)]
pub(crate) struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

impl Tls {
    /// Reads the files. Blocks, for milliseconds.
    ///
    /// # Errors
    /// One of them cannot be read, holds nothing of use, or does not fit to another.
    pub(crate) fn connector(&self) -> Result<RustlsConnector, Unusable> {
        let roots = match &self.ca {
            Some(ca) => RustlsConnectorConfig::default().with_parsable_certificates(certificates("CA", ca)?),
            None => RustlsConnectorConfig::new_with_native_certs().map_err(|why| {
                Unusable(format!(
                    "this system has no trusted CAs: {why} (hint: install ca-certificates, or name the broker's CA with \
                     --tls-ca FILE)"
                ))
            })?,
        };
        let Some((cert, key)) = &self.identity else {
            return roots.connector_with_no_client_auth().map_err(|why| self.unusable(&why));
        };
        let chain = certificates("certificate", cert)?;
        roots.connector_with_single_cert(chain, private_key(key)?).map_err(|why| self.unusable(&why))
    }

    fn unusable(&self, why: &io::Error) -> Unusable {
        let text = match (&self.identity, cause::<rustls::Error>(why)) {
            (Some((cert, key)), Some(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch))) => {
                format!(
                    "the key in {} is not that of the certificate in {} (hint: our own certificate comes first in the file, its \
                 issuers after it)",
                    key.display(),
                    cert.display()
                )
            }
            (Some((cert, _)), Some(_)) => {
                format!("the certificate in {} is of no use: {why} (hint: see --tls-cert)", cert.display())
            }
            _ => {
                let ca = self.ca.as_deref().unwrap_or(Path::new("the system's store"));
                format!("no certificate in {} can be read: {why} (hint: {CA_HINT})", ca.display())
            }
        };
        Unusable(text)
    }
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, Unusable> {
    fs::read(path).map_err(|why| {
        let path = path.display();
        Unusable(format!("cannot read the {what} file {path}: {why} (hint: it is read for each connection)"))
    })
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(what, path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Unusable(format!(
            "the {what} file {} holds no certificate (hint: expected PEM, -----BEGIN CERTIFICATE-----)",
            path.display()
        ))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    let text = read("key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|why| {
        let locked = text.windows(9).any(|word| word == b"ENCRYPTED");
        let hint = match why {
            PemError::NoItemsFound if locked => {
                "it has a passphrase, which nobody can type here; `openssl pkey -in FILE -out NEW` takes it off"
            }
            _ => "expected PEM, -----BEGIN PRIVATE KEY-----",
        };
        Unusable(format!("the key file {} holds no private key that can be used (hint: {hint})", path.display()))
    })
}

fn cause<T: std::error::Error + 'static>(error: &io::Error) -> Option<&T> {
    error.get_ref()?.downcast_ref()
}

/// Why TLS did not come about, with a hint; and whose fault it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Our files.
    Files(String),
    /// What is there speaks no TLS, or none that we do.
    Speech(String),
    /// One of the two does not trust the other.
    Trust(String),
}

/// What an error means, if it is one of TLS.
pub(crate) fn trouble(error: &io::Error) -> Option<Trouble> {
    if let Some(files) = cause::<Unusable>(error) {
        return Some(Trouble::Files(files.to_string()));
    }
    use rustls::Error;
    let trouble = match cause::<Error>(error)? {
        Error::InvalidCertificate(why) => {
            let (why, hint) = untrusted(why);
            Trouble::Trust(format!("its certificate {why} (hint: {hint})"))
        }
        Error::AlertReceived(alert) => {
            let (why, hint) = alerted(*alert);
            Trouble::Trust(format!("{why} (hint: {hint})"))
        }
        Error::InvalidMessage(_) => {
            Trouble::Speech(format!("it does not speak TLS there (hint: {PORT_HINT})"))
        }
        why => Trouble::Speech(format!("{why} (hint: TLS 1.2 or 1.3 is needed; {PORT_HINT})")),
    };
    Some(trouble)
}

/// What is wrong with the broker's certificate.
fn untrusted(why: &CertificateError) -> (String, &'static str) {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ("was not signed by a CA that we trust".into(), CA_HINT)
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            let names = if names.is_empty() {
                "no host at all (a CN does not count)".into()
            } else {
                names.join(", ")
            };
            let host = match expected {
                ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
                name => name.to_str().into_owned(),
            };
            let hint =
                "name the broker in the URL as its certificate does, or have one made that names it so";
            (format!("is not for {host:?}, but for {names}"), hint)
        }
        CertificateError::ExpiredContext { time, not_after } => {
            (format!("has expired, {} ago", apart(*not_after, *time)), CLOCK_HINT)
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            (format!("is not valid yet, only in {}", apart(*time, *not_before)), CLOCK_HINT)
        }
        CertificateError::Revoked => ("was revoked".into(), CLOCK_HINT),
        other => (format!("is not acceptable: {other}"), CA_HINT),
    }
}

/// What the broker has against us.
fn alerted(alert: AlertDescription) -> (String, &'static str) {
    let ours = |why: &str| (format!("the broker does not accept our certificate: {why}"), OURS_HINT);
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
            "the broker breaks the handshake off".into(),
            "it may want a client certificate, --tls-cert FILE and --tls-key FILE; its log knows",
        ),
        other => (format!("the broker breaks the handshake off: {other:?}"), "its log knows why"),
    }
}

/// The name in what the verifier prints: `DnsName("localhost")`, `IpAddress(127.0.0.1)`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner.trim_end_matches(')'));
    inner.trim_matches('"')
}

/// How long from one to the other, as people say it.
fn apart(from: UnixTime, to: UnixTime) -> String {
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

    fn told(why: impl Into<rustls::Error>) -> String {
        match trouble(&error(why)).unwrap() {
            Trouble::Files(text) | Trouble::Speech(text) | Trouble::Trust(text) => text,
        }
    }

    #[test]
    fn each_trouble_has_its_own_words_and_a_hint() {
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let expected = ServerName::try_from("10.0.0.1").unwrap();
        let presented = vec![r#"DnsName("rabbit")"#.into(), "IpAddress(127.0.0.1)".into()];
        let cases = [
            (told(CertificateError::UnknownIssuer), "not signed by a CA that we trust"),
            (
                told(CertificateError::ExpiredContext { time: at(864_000), not_after: at(0) }),
                "expired, 10 days ago",
            ),
            (
                told(CertificateError::NotValidYetContext { time: at(0), not_before: at(3_600) }),
                "only in 60 min",
            ),
            (
                told(CertificateError::NotValidForNameContext { expected, presented }),
                r#"is not for "10.0.0.1", but for rabbit, 127.0.0.1"#,
            ),
            (told(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)), "--tls-cert FILE"),
            (told(rustls::Error::AlertReceived(AlertDescription::UnknownCA)), "not accept our certificate"),
            (told(rustls::InvalidMessage::InvalidContentType), "does not speak TLS"),
        ];
        for (text, part) in &cases {
            assert!(text.contains(part) && text.contains("(hint: "), "{part:?} is missing: {text}");
        }
    }

    #[test]
    fn other_errors_are_none_of_tls() {
        assert_eq!(trouble(&io::ErrorKind::ConnectionRefused.into()), None);
        assert_eq!(trouble(&io::Error::other("something")), None);
    }
}
