//! From a URL to a transport: the only place that knows which there are.

use std::{sync::Arc, time::Duration};

pub(crate) use gristmill_amqp::Access;
use gristmill_amqp::{AmqpConfig, AmqpTransport, Finding, Part};
use gristmill_shared::{Lane, Transport, TransportError};

/// Connects to the broker at `url`; `name` is what its operator sees of us. Tries for 10 s.
///
/// A connection that is lost later comes back by itself, whenever that is; `--give-up-after` bounds it on the command line.
///
/// # Errors
/// [`TransportError::Invalid`] if the URL is none of ours; otherwise whatever kept us from connecting. No error
/// shows the password.
pub async fn connect(url: &str, name: &str) -> Result<Arc<dyn Transport>, TransportError> {
    connect_for(url, &Access::default(), name, None).await
}

/// As [`connect`], with what opens the door besides the URL; a connection that is lost later is given up after that
/// time.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_for(
    url: &str,
    access: &Access,
    name: &str,
    give_up_after: Option<Duration>,
) -> Result<Arc<dyn Transport>, TransportError> {
    let mut config = amqp(url, access, name)?;
    config.give_up_after_loss = give_up_after;
    Ok(AmqpTransport::connect(config).await?)
}

/// As [`connect`], for whoever makes what others need: that something may not be made is an error, also if it is there.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_to_declare(
    url: &str,
    access: &Access,
    name: &str,
) -> Result<Arc<dyn Transport>, TransportError> {
    let mut config = amqp(url, access, name)?;
    config.must_declare = true;
    Ok(AmqpTransport::connect(config).await?)
}

/// Looks over the broker at `url` and a lane on it; see [`gristmill_amqp::examine`].
///
/// # Errors
/// [`TransportError::Invalid`] if the URL is none of ours. A broker that cannot be reached is a finding.
pub(crate) async fn examine(
    url: &str,
    access: &Access,
    name: &str,
    lane: &Lane,
    part: Option<Part>,
) -> Result<Vec<Finding>, TransportError> {
    Ok(gristmill_amqp::examine(&amqp(url, access, name)?, lane, part).await)
}

/// Whether it is the URL of a broker, as far as can be told without its password and certificates.
///
/// # Errors
/// [`TransportError::Invalid`] says what is wrong, without showing the password.
pub(crate) fn check_url(url: &str) -> Result<(), TransportError> {
    is_amqp(url)?;
    AmqpConfig::check(url)
}

fn amqp(url: &str, access: &Access, name: &str) -> Result<AmqpConfig, TransportError> {
    is_amqp(url)?;
    let mut config = AmqpConfig::with_access(url, access)?;
    config.name = name.into();
    Ok(config)
}

fn is_amqp(url: &str) -> Result<(), TransportError> {
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
