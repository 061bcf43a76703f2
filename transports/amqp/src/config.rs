//! Where the broker is, and who we are there.

use std::{fmt, time::Duration};

use gristmill_shared::TransportError;
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::{Access, connection::tls::Tls};

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
const PARAMETERS: [Parameter; 3] = [
    Parameter {
        name: "auth_mechanism",
        expected: "plain, amqplain or external",
        takes: |value| ["plain", "amqplain", "external"].iter().any(|one| value.eq_ignore_ascii_case(one)),
    },
    Parameter {
        name: "connection_timeout",
        expected: "milliseconds, as connection_timeout=5000",
        takes: |value| value.parse::<u64>().is_ok(),
    },
    Parameter {
        name: "heartbeat",
        expected: "seconds from 0 to 65535, as heartbeat=10",
        takes: |value| value.parse::<u16>().is_ok(),
    },
];

/// Something that the URL may say.
struct Parameter {
    name: &'static str,
    expected: &'static str,
    takes: fn(&str) -> bool,
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
    /// Whether everything must be declared, and so compared and bound, by us: that we may not is an error then. Defaults to
    /// false: whoever may not declare looks whether it is there.
    pub must_declare: bool,
    uri: AMQPUri,
    /// Whether somebody gave a password; without one it is RabbitMQ's first, `guest`.
    has_password: bool,
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
        let mut uri = parse(url)?;
        uri.query.frame_max = Some(FRAME_MAX);
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let tls = access.tls(&uri.scheme)?;
        let has_password = access.identify(url, &mut uri)?;
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

    /// Whether a URL is one of those, as far as can be told without what comes beside it: a password, certificates.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] says what is wrong with it, without showing the password.
    pub fn check(url: &str) -> Result<(), TransportError> {
        parse(url).map(drop)
    }

    /// How to trust and be trusted, if it is to be TLS.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The same error of a login; with what may be its cause: that nobody gave a password, or, if it is the virtual host
    /// that was refused, how to see which there are.
    pub(crate) fn explain(&self, error: TransportError) -> TransportError {
        let TransportError::Denied { transport, reason } = error else { return error };
        let user = &self.uri.authority.userinfo.username;
        let reason = if reason.starts_with("NOT_ALLOWED") {
            let hint = "the user was let in, but not to that virtual host; `rabbitmqctl list_vhosts` names those there are, \
                        `rabbitmqctl list_permissions -p VHOST` who may use one";
            format!("{reason} (hint: {hint})")
        } else if self.has_password || user.is_empty() {
            reason
        } else {
            let hint = "set GRISTMILL_PASSWORD, or GRISTMILL_PASSWORD_FILE for a file with it alone";
            format!("{reason}; no password was given for the user {user} (hint: {hint})")
        };
        TransportError::Denied { transport, reason }
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

fn parse(url: &str) -> Result<AMQPUri, TransportError> {
    refuse_torn_passwords(url)?;
    refuse_wrong_parameters(url)?;
    let mut uri: AMQPUri = url.parse().map_err(|why: String| invalid(&plain(&why)))?;
    if let Some(host) = ipv6_host(url) {
        uri.authority.host = host.into(); // lapin would go to localhost instead
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".into(); // a slash at the end; nobody has a virtual host without a name
    }
    if uri.vhost.len() > u8::MAX.into() {
        return Err(invalid("its virtual host is longer than 255 bytes"));
    }
    Ok(uri)
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

fn refuse_wrong_parameters(url: &str) -> Result<(), TransportError> {
    let query = url.split_once('?').map_or("", |(_, query)| query).split('#').next().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == key) else {
            let known = PARAMETERS.map(|parameter| parameter.name).join(", ");
            return Err(TransportError::Invalid(format!(
                "the broker's URL has an unknown parameter {key:?} (hint: known are {known})"
            )));
        };
        if !(parameter.takes)(value) {
            return Err(TransportError::Invalid(format!(
                "the broker's URL has {key}={value:?} (hint: expected {})",
                parameter.expected
            )));
        }
    }
    Ok(())
}

/// User, password, host and port.
pub(crate) fn authority(url: &str) -> Option<&str> {
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
    fn a_password_is_asked_for_only_where_the_login_was_refused() {
        let told = |url: &str, reason: &str| {
            let error = TransportError::Denied { transport: "amqp://here".into(), reason: reason.into() };
            AmqpConfig::new(url).unwrap().explain(error).to_string()
        };
        let refused = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN";
        assert!(told("amqp://me@host", refused).contains("no password was given for the user me"));
        assert!(!told("amqp://me:wrong@host", refused).contains("(hint: "));
        let elsewhere = told("amqp://me@host/nope", "NOT_ALLOWED - vhost nope not found");
        assert!(elsewhere.contains("list_vhosts") && !elsewhere.contains("PASSWORD"), "{elsewhere}");
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
    fn a_wrong_parameter_is_told_with_its_value_and_what_it_takes() {
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
    fn a_password_that_is_not_escaped_is_refused_and_not_shown() {
        for url in ["amqp://me:1234/secret@host:5", "amqp://me:12?secret@host", "amqp://me:#secret@host/v"] {
            let error = AmqpConfig::new(url).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("%2F"), "{error}");
        }
        assert!(AmqpConfig::new("amqp://me:a%2Fb%40c@host/v%40w").is_ok());
    }
}
