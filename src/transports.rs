//! The transports that every program has: the only file that names their crates.

use std::sync::{Arc, LazyLock};

use gristmill_amqp::AmqpDriver;
use gristmill_shared::{ConnectOptions, Transport, TransportError, TransportRegistry};

/// The URL of the broker, unless another one is given.
pub(crate) const DEFAULT_BROKER_URL: &str = AmqpDriver::LOCAL_URL;

/// The transports of the functions that take only a URL.
static BUILT_IN_TRANSPORTS: LazyLock<TransportRegistry> = LazyLock::new(built_in_transports);

/// Returns the transports that Gristmill has itself: `amqp://` and `amqps://`. A program may
/// register further ones.
///
/// ```no_run
/// use gristmill::{Client, ConnectOptions};
///
/// # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
/// let mut transports = gristmill::built_in_transports();
/// // transports.register(MyDriver)?;
/// let client = Client::over(transports.connect(&ConnectOptions::new("my://broker")).await?);
/// # Ok(()) }
/// ```
#[must_use]
pub fn built_in_transports() -> TransportRegistry {
    let mut transports = TransportRegistry::default();
    transports.register(AmqpDriver::default()).expect("its schemes are its own");
    transports
}

/// Connects to the broker at `url` by a built-in transport. `name` identifies this process to the
/// broker's operator. Tries for 10 s.
///
/// A connection that is lost later is restored without a time limit; on the command line,
/// `--give-up-after` sets one.
///
/// # Errors
/// [`TransportError::Invalid`] if no transport takes the URL; otherwise the reason why the
/// connection failed. No error shows the password.
pub async fn connect(url: &str, name: &str) -> Result<Arc<dyn Transport>, TransportError> {
    connect_with(&ConnectOptions::new(url).name(name)).await
}

/// Connects like [`connect`], with all options.
///
/// # Errors
/// The errors of [`connect`].
pub(crate) async fn connect_with(options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError> {
    BUILT_IN_TRANSPORTS.connect(options).await
}

/// Returns the URL of a broker on another machine, for examples in help texts.
pub(crate) fn example_url(user: &str) -> String {
    format!("amqp://{user}:password@broker:5672")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::App;

    #[test]
    fn default_urls_have_a_transport() {
        for url in [DEFAULT_BROKER_URL, &example_url("me")] {
            assert!(built_in_transports().check_url(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn app_refuses_a_scheme_twice() {
        let error = App::new().transport(AmqpDriver::default()).0.into_parts().unwrap_err().to_string();
        assert!(error.starts_with("two transports take URLs of amqp://"), "{error}");
    }
}
