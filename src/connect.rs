//! From a URL to a transport: the only place that knows which there are.

use std::sync::Arc;

use gristmill_amqp::{AmqpConfig, AmqpTransport};
use gristmill_shared::{Transport, TransportError};

/// Connects to the broker at `url`; `name` is what its operator sees of us. Tries for 10 s.
///
/// # Errors
/// [`TransportError::Invalid`] if the URL is none of ours; otherwise whatever kept us from connecting. No error
/// shows the password.
pub async fn connect(url: &str, name: &str) -> Result<Arc<dyn Transport>, TransportError> {
    match url.split_once("://") {
        Some(("amqp" | "amqps", _)) => {
            let mut config = AmqpConfig::new(url)?;
            config.name = name.into();
            Ok(AmqpTransport::connect(config).await?)
        }
        Some((scheme, _)) => Err(TransportError::Invalid(format!(
            "no transport for {scheme}:// (hint: expected amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…)"
        ))),
        None => Err(TransportError::Invalid(
            "the broker's URL has no scheme (hint: expected amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…)"
                .into(),
        )),
    }
}
