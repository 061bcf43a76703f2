//! Where the broker is, and who we are there.

use std::{fmt, path::PathBuf, time::Duration};

use gristmill_shared::TransportError;
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

use crate::tls::Tls;

/// For how long [`AmqpTransport::connect`](crate::AmqpTransport::connect) tries, unless told otherwise.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// The largest frame, in bytes. Without it lapin would take any size that the broker asks for, times 64.
const FRAME_MAX: u32 = 131_072;
/// Seconds between heartbeats, unless the URL says otherwise. A peer that is silent for twice as long is gone, which is
/// soon enough for whoever asks whether the broker is there.
const HEARTBEAT: u16 = 6;
/// How long one attempt to connect may take, unless the URL says otherwise with `connection_timeout`.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// What the URL may say after its `?`.
const PARAMETERS: [&str; 3] = ["auth_mechanism", "connection_timeout", "heartbeat"];

/// What opens the door besides the URL. `Debug` does not show the password.
#[derive(Clone, Default)]
pub struct Access {
    /// The password of the URL's user, so that the URL can be shown to everybody.
    pub password: Option<String>,
    /// A PEM file with the CAs that may have signed the broker's certificate, *instead* of the system's: whoever names
    /// one means that one. Needs `amqps://`, as do the next two.
    pub tls_ca: Option<PathBuf>,
    /// A PEM file with our certificate and its issuers. If the URL names no user, the certificate says who we are (SASL
    /// EXTERNAL).
    pub tls_cert: Option<PathBuf>,
    /// A PEM file with the key of that certificate, without a passphrase.
    pub tls_key: Option<PathBuf>,
}

/// Where the broker is, and who we are there. Neither `Display` nor `Debug` shows the password.
#[derive(Clone)]
pub struct AmqpConfig {
    /// What the broker's operator sees of us: role, host and process. Defaults to `gristmill`.
    pub name: String,
    /// For how long a first connection is tried for. Defaults to [`GIVE_UP_AFTER`].
    pub give_up_after: Duration,
    /// For how long a connection that was lost is tried for before the transport gives up for good. Defaults to
    /// `None`: for ever.
    pub give_up_after_loss: Option<Duration>,
    uri: AMQPUri,
    /// If the URL is `amqps://`.
    tls: Option<Tls>,
}

impl AmqpConfig {
    /// [`AmqpConfig::with_access`], with all that there is in the URL.
    ///
    /// # Errors
    /// As there.
    pub fn new(url: &str) -> Result<Self, TransportError> {
        Self::with_access(url, &Access::default())
    }

    /// Takes a URL `amqp://USER:PASSWORD@HOST:PORT/VHOST`, or `amqps://…` for TLS, which trusts the system's CAs (or
    /// those in the file that `SSL_CERT_FILE` names) unless `access` names others. Reads the files that `access` names,
    /// as each connection will do again.
    ///
    /// What is missing is as RabbitMQ has it at first: `guest`, `guest`, `localhost`, 5672 or 5671, `/`. After a `?`
    /// may follow `heartbeat` (seconds), `connection_timeout` (milliseconds, for one attempt) and `auth_mechanism`.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] says what is wrong with the URL or a file, without showing the password.
    pub fn with_access(url: &str, access: &Access) -> Result<Self, TransportError> {
        refuse_torn_passwords(url)?;
        let mut uri: AMQPUri = url.parse().map_err(|why: String| invalid(&plain(&why)))?;
        refuse_unknown_parameters(url)?;
        if let Some(host) = ipv6_host(url) {
            uri.authority.host = host.into(); // lapin would go to localhost instead
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".into(); // a slash at the end; nobody has a virtual host without a name
        }
        if uri.vhost.len() > u8::MAX.into() {
            return Err(invalid("its virtual host is longer than 255 bytes"));
        }
        uri.query.frame_max = Some(FRAME_MAX);
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let tls = access.tls(&uri.scheme)?;
        access.identify(url, &mut uri)?;
        Ok(Self {
            name: "gristmill".into(),
            give_up_after: GIVE_UP_AFTER,
            give_up_after_loss: None,
            uri,
            tls,
        })
    }

    /// How to trust and be trusted, if it is to be TLS.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub(crate) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// Holds the password.
    pub(crate) fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.uri.query.connection_timeout.map_or(ATTEMPT_TIMEOUT, Duration::from_millis)
    }
}

impl Access {
    /// Looks through the files.
    fn tls(&self, scheme: &AMQPScheme) -> Result<Option<Tls>, TransportError> {
        let Self { tls_ca, tls_cert, tls_key, .. } = self;
        if *scheme == AMQPScheme::AMQP {
            return match [tls_ca, tls_cert, tls_key].into_iter().flatten().next() {
                None => Ok(None),
                Some(file) => Err(TransportError::Invalid(format!(
                    "{} is for TLS, and the broker's URL is amqp://, without TLS (hint: write amqps://; its port is 5671)",
                    file.display()
                ))),
            };
        }
        let identity = match (tls_cert, tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (Some(file), None) | (None, Some(file)) => {
                let file = file.display();
                let why = format!(
                    "{file}: a certificate and its key go together (hint: --tls-cert FILE --tls-key FILE)"
                );
                return Err(TransportError::Invalid(why));
            }
        };
        let tls = Tls { ca: tls_ca.clone(), identity };
        tls.connector().map_err(|why| TransportError::Invalid(why.to_string()))?;
        Ok(Some(tls))
    }

    /// Decides who says who we are: a user with a password, or our certificate.
    fn identify(&self, url: &str, uri: &mut AMQPUri) -> Result<(), TransportError> {
        let user = userinfo(url);
        if user.is_none() && self.tls_cert.is_some() {
            uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
        }
        let refused = |why: &str| Err(TransportError::Invalid(why.into()));
        if uri.query.auth_mechanism == Some(SASLMechanism::External) {
            if self.tls_cert.is_none() {
                return refused(
                    "auth_mechanism=external needs a client certificate (hint: --tls-cert FILE --tls-key FILE, amqps://)",
                );
            }
            if self.password.is_some() {
                return refused(
                    "there is a password, but the client certificate says who we are, since the broker's URL names no \
                     user (hint: amqps://USER@HOST, or no password)",
                );
            }
            uri.authority.userinfo.username.clear(); // else `guest`, whom nobody named
            uri.authority.userinfo.password.clear();
        } else if let Some(password) = &self.password {
            if user.is_some_and(|user| user.contains(':')) {
                return refused(
                    "there are two passwords, one of them in the broker's URL (hint: leave that one out, amqp://USER@HOST)",
                );
            }
            uri.authority.userinfo.password.clone_from(password);
        }
        Ok(())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password, tls_ca, tls_cert, tls_key } = self;
        f.debug_struct("Access")
            .field("password", &password.as_ref().map(|_| "***"))
            .field("tls_ca", tls_ca)
            .field("tls_cert", tls_cert)
            .field("tls_key", tls_key)
            .finish()
    }
}

fn invalid(why: &str) -> TransportError {
    TransportError::Invalid(format!(
        "the broker's URL is not valid: {why} (hint: expected amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…)"
    ))
}

/// The parser's complaint, unless it quotes the URL and with it the password.
fn plain(why: &str) -> String {
    if why.starts_with("Invalid URL") { "it has no //".into() } else { why.replace("Invalid", "invalid") }
}

/// A password with a `/`, `?` or `#` of its own is taken for a host and a path, and then shown as such.
fn refuse_torn_passwords(url: &str) -> Result<(), TransportError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let torn = rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@'));
    if torn {
        let hint =
            "in a password write / as %2F, ? as %3F, # as %23 and @ as %40; in a virtual host @ as %40";
        return Err(TransportError::Invalid(format!(
            "the broker's URL has an @ where none can be; it is not shown here (hint: {hint})"
        )));
    }
    Ok(())
}

fn refuse_unknown_parameters(url: &str) -> Result<(), TransportError> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let keys =
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap_or(pair));
    for key in keys {
        if !PARAMETERS.contains(&key) {
            let known = PARAMETERS.join(", ");
            return Err(TransportError::Invalid(format!(
                "the broker's URL has an unknown parameter {key:?} (hint: known are {known})"
            )));
        }
    }
    Ok(())
}

/// What the URL says before the `@`, if there is one.
fn userinfo(url: &str) -> Option<&str> {
    Some(authority(url)?.rsplit_once('@')?.0)
}

fn authority(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split(['/', '?', '#']).next()
}

fn ipv6_host(url: &str) -> Option<&str> {
    let authority = authority(url)?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(host, _)| host)
}

/// `amqp://user@host:port/vhost`; the virtual host `/` is left out.
impl fmt::Display for AmqpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        let scheme = if *scheme == AMQPScheme::AMQPS { "amqps" } else { "amqp" };
        let host = &authority.host;
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        let user = &authority.userinfo.username;
        let at = if user.is_empty() { "" } else { "@" }; // our certificate says who we are
        write!(f, "{scheme}://{user}{at}{open}{host}{close}:{}", authority.port)?;
        if vhost != "/" {
            write!(f, "/{}", vhost.replace('/', "%2f"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for AmqpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConfig")
            .field("broker", &self.to_string())
            .field("tls", &self.tls)
            .field("name", &self.name)
            .field("give_up_after", &self.give_up_after)
            .field("give_up_after_loss", &self.give_up_after_loss)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        AmqpConfig::new(url).unwrap().to_string()
    }

    #[test]
    fn what_is_missing_is_filled_in_and_the_password_is_left_out() {
        assert_eq!(shown("amqp://localhost"), "amqp://guest@localhost:5672");
        assert_eq!(shown("amqp://me:secret@10.0.0.1:1234/"), "amqp://me@10.0.0.1:1234");
        assert_eq!(shown("amqps://me:secret@host/mill%2fone"), "amqps://me@host:5671/mill%2fone");
        let config = AmqpConfig::new("amqp://me:secret@host").unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.uri().authority.userinfo.password, "secret");
    }

    #[test]
    fn an_ipv6_host_is_not_taken_for_localhost() {
        let config = AmqpConfig::new("amqp://me:pass@[2001:db8::1]:5673/x").unwrap();
        assert_eq!(config.uri().authority.host, "2001:db8::1");
        assert_eq!(config.to_string(), "amqp://me@[2001:db8::1]:5673/x");
    }

    #[test]
    fn the_frame_size_is_ours_and_the_heartbeat_the_users_if_given() {
        let query = |url| AmqpConfig::new(url).unwrap().uri().query.clone();
        assert_eq!(query("amqp://host").heartbeat, Some(6));
        assert_eq!(query("amqp://host?heartbeat=3").heartbeat, Some(3));
        assert_eq!(query("amqp://host").frame_max, Some(131_072));
        let config = AmqpConfig::new("amqp://host?connection_timeout=250").unwrap();
        assert_eq!(config.attempt_timeout(), Duration::from_millis(250));
    }

    #[test]
    fn a_bad_url_is_refused_without_showing_the_password() {
        let long = format!("amqp://me:secret@host/{}", "v".repeat(256));
        for url in [
            "me:secret@host",
            "amqp:me:secret@host",
            "http://me:secret@host",
            "amqp://me:secret@host:port",
            "amqp://me:secret@host?heartbeat=soon",
            "amqp://me:secret@host?cacertfile=x",
            "",
            "host:5672",
            &long,
        ] {
            let error = AmqpConfig::new(url).unwrap_err().to_string();
            assert!(error.contains("URL") && error.contains("(hint: "), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_that_is_not_escaped_is_refused_and_not_shown() {
        for url in ["amqp://me:1234/secret@host:5", "amqp://me:12?secret@host", "amqp://me:#secret@host/v"] {
            let error = AmqpConfig::new(url).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("%2F"), "{error}");
        }
        assert!(AmqpConfig::new("amqp://me:a%2Fb%40c@host/v%40w").is_ok());
    }

    fn with(url: &str, access: Access) -> Result<AmqpConfig, String> {
        AmqpConfig::with_access(url, &access).map_err(|error| error.to_string())
    }

    #[test]
    fn a_password_of_its_own_goes_with_a_url_that_has_none() {
        let access = Access { password: Some("se/cr@et".into()), ..Access::default() };
        assert!(!format!("{access:?}").contains("se/cr"));
        for (url, user) in [("amqp://me@host", "me"), ("amqp://host", "guest")] {
            let config = with(url, access.clone()).unwrap();
            assert_eq!(config.uri().authority.userinfo.username, user);
            assert_eq!(config.uri().authority.userinfo.password, "se/cr@et");
            assert!(!format!("{config} {config:?}").contains("se/cr"));
        }
        let error = with("amqp://me:other@host", access).unwrap_err();
        assert!(
            error.contains("two passwords") && !error.contains("se/cr") && !error.contains("other"),
            "{error}"
        );
    }

    #[test]
    fn what_is_for_tls_is_refused_without_it_and_in_halves() {
        let ca = || Access { tls_ca: Some("ca.pem".into()), ..Access::default() };
        assert!(with("amqp://host", ca()).unwrap_err().contains("amqps://"));
        assert!(
            with("amqps://host", ca()).unwrap_err().contains("cannot read the CA file ca.pem: No such file")
        );
        let half = Access { tls_key: Some("key.pem".into()), ..Access::default() };
        assert!(with("amqps://host", half).unwrap_err().contains("go together"));
        let external = with("amqps://host?auth_mechanism=external", Access::default());
        assert!(external.unwrap_err().contains("needs a client certificate"));
    }
}
