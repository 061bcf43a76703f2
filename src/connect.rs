//! Connecting to a broker by its URL: the only place that knows the transports.

use std::{sync::Arc, time::Duration};

use gristmill_amqp::{AmqpConfig, AmqpTransport};
pub(crate) use gristmill_shared::Credentials;
use gristmill_shared::{Finding, FleetRole, Lane, Transport, TransportError};

/// Connects to the broker at `url`. `name` identifies this process to the broker's operator. Tries
/// for 10 s.
///
/// A connection that is lost later is restored without a time limit; on the command line,
/// `--give-up-after` sets one.
///
/// # Errors
/// [`TransportError::Invalid`] if no transport takes the URL; otherwise the reason why the
/// connection failed. No error shows the password.
pub async fn connect(url: &str, name: &str) -> Result<Arc<dyn Transport>, TransportError> {
    connect_with(url, &Credentials::default(), name, None).await
}

/// Connects like [`connect`], with credentials that are not in the URL. A connection that is lost
/// later is given up after `give_up_after`, if that is set.
///
/// # Errors
/// The errors of [`connect`].
pub(crate) async fn connect_with(
    url: &str,
    access: &Credentials,
    name: &str,
    give_up_after: Option<Duration>,
) -> Result<Arc<dyn Transport>, TransportError> {
    let mut config = amqp_config(url, access, name)?;
    config.give_up_after_loss = give_up_after;
    Ok(AmqpTransport::connect(config).await?)
}

/// Connects like [`connect`], but fails if the user may not declare entities, even if they already
/// exist.
///
/// # Errors
/// The errors of [`connect`].
pub(crate) async fn connect_to_declare(
    url: &str,
    access: &Credentials,
    name: &str,
) -> Result<Arc<dyn Transport>, TransportError> {
    let mut config = amqp_config(url, access, name)?;
    config.must_declare = true;
    Ok(AmqpTransport::connect(config).await?)
}

/// Examines the broker at `url` and a lane on it; see [`gristmill_amqp::diagnose`].
///
/// # Errors
/// [`TransportError::Invalid`] if no transport takes the URL. An unreachable broker is a finding.
pub(crate) async fn diagnose(
    url: &str,
    access: &Credentials,
    name: &str,
    lane: &Lane,
    part: Option<FleetRole>,
) -> Result<Vec<Finding>, TransportError> {
    Ok(gristmill_amqp::diagnose(&amqp_config(url, access, name)?, lane, part).await)
}

/// Checks the URL of a broker, without its password and certificates.
///
/// # Errors
/// [`TransportError::Invalid`] says what is wrong, without the password.
pub(crate) fn check_url(url: &str) -> Result<(), TransportError> {
    require_amqp(url)?;
    AmqpConfig::check(url)
}

fn amqp_config(url: &str, access: &Credentials, name: &str) -> Result<AmqpConfig, TransportError> {
    require_amqp(url)?;
    let mut config = AmqpConfig::with_credentials(url, access)?;
    config.name = name.into();
    Ok(config)
}

fn require_amqp(url: &str) -> Result<(), TransportError> {
    match url.split_once("://") {
        Some(("amqp" | "amqps", _)) => Ok(()),
        Some((scheme, _)) => Err(TransportError::Invalid(format!(
            "no transport for {scheme}:// (hint: expected amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…)"
        ))),
        None => Err(TransportError::Invalid(
            "the broker's URL has no scheme (hint: expected amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…)"
                .into(),
        )),
    }
}
