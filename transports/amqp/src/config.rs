//! The broker's address, the user, and the limits of connecting.

use std::{fmt, time::Duration};

use gristmill_shared::{ConnectOptions, Credentials, TransportError};
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::connection::{TlsSettings, enter_login, tls_settings};

/// Time for which [`AmqpTransport::connect`](crate::AmqpTransport::connect) tries by default.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// The largest frame, in bytes. Without it lapin would accept 64 times any size that the broker
/// asks for.
const FRAME_MAX_BYTES: u32 = 131_072;
/// Seconds between heartbeats, unless the URL sets them. A peer that is silent for twice as long
/// counts as lost, which is soon enough for callers that watch the connection.
const HEARTBEAT_SECS: u16 = 6;
/// Time limit for one attempt to connect, unless the URL sets `connection_timeout`.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// The form of a URL, for hints.
pub(crate) const URL_FORM: &str = "amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…";
/// Parameters that the URL may have after its `?`.
const URL_PARAMETERS: [UrlParameter; 3] = [
    UrlParameter {
        name: "auth_mechanism",
        expected: "plain, amqplain or external",
        is_valid: |value| ["plain", "amqplain", "external"].iter().any(|one| value.eq_ignore_ascii_case(one)),
    },
    UrlParameter {
        name: "connection_timeout",
        expected: "milliseconds, as connection_timeout=5000",
        is_valid: |value| value.parse::<u64>().is_ok(),
    },
    UrlParameter {
        name: "heartbeat",
        expected: "seconds from 0 to 65535, as heartbeat=10",
        is_valid: |value| value.parse::<u16>().is_ok(),
    },
];

/// A parameter of the URL.
struct UrlParameter {
    name: &'static str,
    expected: &'static str,
    is_valid: fn(&str) -> bool,
}

/// The broker's address and the user. Neither `Display` nor `Debug` shows the password.
#[derive(Clone)]
pub struct AmqpConfig {
    /// The connection name that the broker's operator sees: role, host and process. Defaults to
    /// `gristmill`.
    pub name: String,
    /// Time for which a first connection is attempted. Defaults to [`GIVE_UP_AFTER`].
    pub give_up_after: Duration,
    /// Time for which a lost connection is attempted before the transport gives up for good.
    /// Defaults to `None`: no limit.
    pub give_up_after_loss: Option<Duration>,
    /// Requires that this process declares everything, which also compares and binds it; a missing
    /// permission is then an error. By default a process that may not declare checks that the
    /// entities exist.
    pub must_declare: bool,
    uri: AMQPUri,
    /// True if a password was given; otherwise it is RabbitMQ's default, `guest`.
    has_password: bool,
    /// TLS files, if the URL is `amqps://`.
    tls: Option<TlsSettings>,
}

impl AmqpConfig {
    /// Calls [`AmqpConfig::with_credentials`] with no credentials outside the URL.
    ///
    /// # Errors
    /// The same.
    pub fn new(url: &str) -> Result<Self, TransportError> {
        Self::with_credentials(url, &Credentials::default())
    }

    /// Takes a URL `amqp://USER:PASSWORD@HOST:PORT/VHOST`, or `amqps://…` for TLS, which trusts the
    /// system's CAs (or those in the file that `SSL_CERT_FILE` names) unless `access` names others.
    /// Reads the files that `access` names, as each connection will do again.
    ///
    /// Missing parts have RabbitMQ's defaults: `guest`, `guest`, `localhost`, 5672 or 5671, `/`.
    /// The parameters after a `?` are `heartbeat` (seconds), `connection_timeout` (milliseconds,
    /// for one attempt) and `auth_mechanism`.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] names the defect of the URL or a file, without showing the
    /// password.
    pub fn with_credentials(url: &str, access: &Credentials) -> Result<Self, TransportError> {
        let mut uri = parse_url(url)?;
        uri.query.frame_max = Some(FRAME_MAX_BYTES);
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        let tls = tls_settings(access, &uri.scheme)?;
        let has_password = enter_login(access, url, &mut uri)?;
        Ok(Self {
            name: "gristmill".into(),
            give_up_after: GIVE_UP_AFTER,
            give_up_after_loss: None,
            must_declare: false,
            uri,
            has_password,
            tls,
        })
    }

    /// Calls [`AmqpConfig::with_credentials`] with those of the options, and takes over the others.
    ///
    /// # Errors
    /// The same.
    pub fn from_options(options: &ConnectOptions) -> Result<Self, TransportError> {
        let mut config = Self::with_credentials(&options.url, &options.credentials)?;
        config.name.clone_from(&options.name);
        config.give_up_after_loss = options.give_up_after_loss;
        config.must_declare = options.must_declare;
        Ok(config)
    }

    /// Checks a URL without the credentials beside it: password and certificates.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] names the defect, without showing the password.
    pub fn check(url: &str) -> Result<(), TransportError> {
        parse_url(url).map(drop)
    }

    /// Returns the TLS files, `None` without TLS.
    pub(crate) fn tls(&self) -> Option<&TlsSettings> {
        self.tls.as_ref()
    }

    /// Adds a hint at the likely cause to a failed login: no password was given, or, if the virtual
    /// host was refused, how to list those there are.
    pub(crate) fn add_login_hint(&self, error: TransportError) -> TransportError {
        let TransportError::AuthenticationFailed { transport, reason } = error else { return error };
        let user = &self.uri.authority.userinfo.username;
        let reason = if reason.starts_with("NOT_ALLOWED") {
            let hint = "the user may not use that virtual host; `rabbitmqctl list_vhosts` lists those there are, \
                        `rabbitmqctl list_permissions -p VHOST` the users of one";
            format!("{reason} (hint: {hint})")
        } else if self.has_password || user.is_empty() {
            reason
        } else {
            let hint = "set GRISTMILL_PASSWORD, or GRISTMILL_PASSWORD_FILE for a file with it alone";
            format!("{reason}; no password was given for the user {user} (hint: {hint})")
        };
        TransportError::AuthenticationFailed { transport, reason }
    }

    pub(crate) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// Returns the address, which contains the password.
    pub(crate) fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.uri.query.connection_timeout.map_or(ATTEMPT_TIMEOUT, Duration::from_millis)
    }
}

fn parse_url(url: &str) -> Result<AMQPUri, TransportError> {
    reject_unescaped_password(url)?;
    reject_invalid_parameters(url)?;
    let mut uri: AMQPUri = url.parse().map_err(|why: String| invalid_url(&plain_reason(&why)))?;
    if let Some(host) = ipv6_host(url) {
        uri.authority.host = host.into(); // lapin would go to localhost instead
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".into(); // a slash at the end; a virtual host without a name is not supported
    }
    if uri.vhost.len() > u8::MAX.into() {
        return Err(invalid_url("its virtual host is longer than 255 bytes"));
    }
    Ok(uri)
}

fn invalid_url(why: &str) -> TransportError {
    TransportError::Invalid(format!("the broker's URL is not valid: {why} (hint: expected {URL_FORM})"))
}

/// Returns the parser's message, unless it quotes the URL and with it the password.
fn plain_reason(why: &str) -> String {
    if why.starts_with("Invalid URL") { "it has no //".into() } else { why.replace("Invalid", "invalid") }
}

/// Rejects a URL whose password contains `/`, `?` or `#`: the parser would take part of it for a
/// host or a path, which errors show.
fn reject_unescaped_password(url: &str) -> Result<(), TransportError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let torn = rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@'));
    if torn {
        let hint =
            "in a password write / as %2F, ? as %3F, # as %23 and @ as %40; in a virtual host @ as %40";
        return Err(TransportError::Invalid(format!(
            "the broker's URL has an @ in an invalid place; it is not shown here (hint: {hint})"
        )));
    }
    Ok(())
}

fn reject_invalid_parameters(url: &str) -> Result<(), TransportError> {
    let query = url.split_once('?').map_or("", |(_, query)| query).split('#').next().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(parameter) = URL_PARAMETERS.iter().find(|parameter| parameter.name == key) else {
            let known = URL_PARAMETERS.map(|parameter| parameter.name).join(", ");
            return Err(TransportError::Invalid(format!(
                "the broker's URL has an unknown parameter {key:?} (hint: known are {known})"
            )));
        };
        if !(parameter.is_valid)(value) {
            return Err(TransportError::Invalid(format!(
                "the broker's URL has {key}={value:?} (hint: expected {})",
                parameter.expected
            )));
        }
    }
    Ok(())
}

/// Returns user, password, host and port.
pub(crate) fn authority(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split(['/', '?', '#']).next()
}

fn ipv6_host(url: &str) -> Option<&str> {
    let authority = authority(url)?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(host, _)| host)
}

/// Writes `amqp://user@host:port/vhost`; the virtual host `/` is left out.
impl fmt::Display for AmqpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        let scheme = if *scheme == AMQPScheme::AMQPS { "amqps" } else { "amqp" };
        let host = &authority.host;
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        let user = &authority.userinfo.username;
        let at = if user.is_empty() { "" } else { "@" }; // the certificate authenticates
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
            .field("must_declare", &self.must_declare)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        AmqpConfig::new(url).unwrap().to_string()
    }

    /// Missing parts show their defaults.
    #[test]
    fn url_is_shown_without_password() {
        assert_eq!(shown("amqp://localhost"), "amqp://guest@localhost:5672");
        assert_eq!(shown("amqp://me:secret@10.0.0.1:1234/"), "amqp://me@10.0.0.1:1234");
        assert_eq!(shown("amqps://me:secret@host/mill%2fone"), "amqps://me@host:5671/mill%2fone");
        let config = AmqpConfig::new("amqp://me:secret@host").unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.uri().authority.userinfo.password, "secret");
    }

    /// A refused virtual host gets another hint.
    #[test]
    fn only_failed_login_hints_password() {
        let explain = |url: &str, reason: &str| {
            let error = TransportError::AuthenticationFailed {
                transport: "amqp://here".into(),
                reason: reason.into(),
            };
            AmqpConfig::new(url).unwrap().add_login_hint(error).to_string()
        };
        let refused = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN";
        assert!(explain("amqp://me@host", refused).contains("no password was given for the user me"));
        assert!(!explain("amqp://me:wrong@host", refused).contains("(hint: "));
        let elsewhere = explain("amqp://me@host/nope", "NOT_ALLOWED - vhost nope not found");
        assert!(elsewhere.contains("list_vhosts") && !elsewhere.contains("PASSWORD"), "{elsewhere}");
    }

    #[test]
    fn ipv6_host_is_not_localhost() {
        let config = AmqpConfig::new("amqp://me:pass@[2001:db8::1]:5673/x").unwrap();
        assert_eq!(config.uri().authority.host, "2001:db8::1");
        assert_eq!(config.to_string(), "amqp://me@[2001:db8::1]:5673/x");
    }

    #[test]
    fn url_sets_heartbeat_but_no_frame_size() {
        let query = |url| AmqpConfig::new(url).unwrap().uri().query.clone();
        assert_eq!(query("amqp://host").heartbeat, Some(6));
        assert_eq!(query("amqp://host?heartbeat=3").heartbeat, Some(3));
        assert_eq!(query("amqp://host").frame_max, Some(131_072));
        let config = AmqpConfig::new("amqp://host?connection_timeout=250").unwrap();
        assert_eq!(config.attempt_timeout(), Duration::from_millis(250));
    }

    #[test]
    fn bad_url_hides_password() {
        let long = format!("amqp://me:secret@host/{}", "v".repeat(256));
        for url in [
            "me:secret@host",
            "amqp:me:secret@host",
            "http://me:secret@host",
            "amqp://me:secret@host:port",
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

    /// The error also says what the parameter expects.
    #[test]
    fn wrong_parameter_is_quoted() {
        for (query, expected) in [
            ("heartbeat=soon", "seconds from 0 to 65535"),
            ("heartbeat=70000", "seconds from 0 to 65535"),
            ("heartbeat=10&connection_timeout=1s", "milliseconds"),
            ("auth_mechanism=kerberos", "plain, amqplain or external"),
        ] {
            let error = AmqpConfig::new(&format!("amqp://me:secret@host/v?{query}")).unwrap_err().to_string();
            let (key, value) = query.rsplit('&').next().unwrap().split_once('=').unwrap();
            assert!(error.contains(&format!("{key}={value:?}")) && error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn unescaped_password_is_refused() {
        for url in ["amqp://me:1234/secret@host:5", "amqp://me:12?secret@host", "amqp://me:#secret@host/v"] {
            let error = AmqpConfig::new(url).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("%2F"), "{error}");
        }
        assert!(AmqpConfig::new("amqp://me:a%2Fb%40c@host/v%40w").is_ok());
    }
}
