//! The login of a connection: the URL's user, and the credentials that are not in the URL.

use gristmill_shared::{Credentials, TransportError};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

use super::tls::TlsSettings;
use crate::config::authority;

/// Returns the TLS files, after a check that they can be used; `None` for `amqp://`.
pub(crate) fn tls_settings(
    access: &Credentials,
    scheme: &AMQPScheme,
) -> Result<Option<TlsSettings>, TransportError> {
    let Credentials { tls_ca, tls_cert, tls_key, .. } = access;
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
    let tls = TlsSettings { ca: tls_ca.clone(), identity };
    tls.connector().map_err(|why| TransportError::Invalid(why.to_string()))?;
    Ok(Some(tls))
}

/// Chooses between a user with a password and the client certificate, and enters the choice
/// into `uri`. Returns true if a password was given.
pub(crate) fn enter_login(
    access: &Credentials,
    url: &str,
    uri: &mut AMQPUri,
) -> Result<bool, TransportError> {
    let user = userinfo(url);
    let in_the_url = user.is_some_and(|user| user.contains(':'));
    if user.is_none() && access.tls_cert.is_some() {
        uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
    }
    let refused = |why: &str| Err(TransportError::Invalid(why.into()));
    if uri.query.auth_mechanism == Some(SASLMechanism::External) {
        if access.tls_cert.is_none() {
            return refused(
                "auth_mechanism=external needs a client certificate (hint: --tls-cert FILE --tls-key FILE, amqps://)",
            );
        }
        if access.password.is_some() {
            return refused(
                "there is a password, but the client certificate authenticates, since the broker's URL names no \
                 user (hint: amqps://USER@HOST, or no password)",
            );
        }
        uri.authority.userinfo.username.clear(); // else `guest`, which the URL does not name
        uri.authority.userinfo.password.clear();
    } else if let Some(password) = &access.password {
        if in_the_url {
            return refused(
                "there are two passwords, one of them in the broker's URL (hint: leave that one out, amqp://USER@HOST)",
            );
        }
        uri.authority.userinfo.password.clone_from(password);
    }
    Ok(in_the_url || access.password.is_some())
}

/// Returns the part of the URL before the `@`, if there is one.
fn userinfo(url: &str) -> Option<&str> {
    Some(authority(url)?.rsplit_once('@')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AmqpConfig;

    fn with(url: &str, access: Credentials) -> Result<AmqpConfig, String> {
        AmqpConfig::with_credentials(url, &access).map_err(|error| error.to_string())
    }

    #[test]
    fn separate_password_completes_url() {
        let access = Credentials { password: Some("se/cr@et".into()), ..Credentials::default() };
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

    /// A certificate without its key is refused too.
    #[test]
    fn tls_files_need_amqps() {
        let ca = || Credentials { tls_ca: Some("ca.pem".into()), ..Credentials::default() };
        assert!(with("amqp://host", ca()).unwrap_err().contains("amqps://"));
        assert!(
            with("amqps://host", ca()).unwrap_err().contains("cannot read the CA file ca.pem: No such file")
        );
        let half = Credentials { tls_key: Some("key.pem".into()), ..Credentials::default() };
        assert!(with("amqps://host", half).unwrap_err().contains("go together"));
        let external = with("amqps://host?auth_mechanism=external", Credentials::default());
        assert!(external.unwrap_err().contains("needs a client certificate"));
    }
}
