//! A kind of transport: the URLs that it takes, how it connects, and what its doctor checks.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Credentials, Finding, FleetRole, Lane, Transport, TransportError};

/// A kind of transport, found by the scheme of a URL in a
/// [`TransportRegistry`](crate::TransportRegistry). It holds no connection.
///
/// Everything that a program says or does about one kind of broker comes from its driver and its
/// transport. No error and no finding may show a password.
#[async_trait]
pub trait TransportDriver: fmt::Debug + Send + Sync + 'static {
    /// Returns the schemes that the driver takes, in lower case and without `://`.
    fn schemes(&self) -> &'static [&'static str];

    /// Returns the form of its URLs, for hints, such as `redis://HOST:PORT`.
    fn url_form(&self) -> &'static str;

    /// Returns directives for the default log filter, such as `redis=off` for a client library that
    /// logs the errors that the transport logs as well. Defaults to none.
    fn log_directives(&self) -> &'static [&'static str] {
        &[]
    }

    /// Checks a URL of one of its schemes, without the credentials beside it and without
    /// connecting.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] names the defect.
    fn check_url(&self, url: &str) -> Result<(), TransportError>;

    /// Connects to the broker. Retries for a bounded time while the broker does not answer.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] for a URL or credentials that the transport cannot use,
    /// otherwise the reason why the connection failed.
    async fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError>;

    /// Examines the broker, and a lane on it, for a user with the rights of `role`, or of any role.
    /// Takes a bounded time, changes nothing, and takes no messages. A broker that cannot be
    /// reached is a finding.
    ///
    /// By default it checks the connection alone.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] for a URL or credentials that the transport cannot use.
    async fn diagnose(
        &self,
        options: &ConnectOptions,
        lane: &Lane,
        role: Option<FleetRole>,
    ) -> Result<Vec<Finding>, TransportError> {
        let _ = (lane, role);
        let finding = match self.connect(options).await {
            Ok(transport) => {
                let finding = Finding::ok("connection", &transport);
                transport.close().await;
                finding
            }
            Err(error @ TransportError::Invalid(_)) => return Err(error),
            Err(error) => Finding::problem("connection", error),
        };
        Ok(vec![finding])
    }
}

/// The options of a connection. `Debug` shows neither the URL nor the password.
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// The URL of the broker. It may contain a password.
    pub url: String,
    /// The credentials that are not in the URL.
    pub credentials: Credentials,
    /// The name of this process for the broker's operator: role, host and process. Defaults to
    /// `gristmill`.
    pub name: String,
    /// The time for which a lost connection is restored before the transport gives up for good.
    /// Defaults to `None`: no limit.
    pub give_up_after_loss: Option<Duration>,
    /// Requires that this process creates the entities of a lane, which also compares them; a
    /// missing permission is then an error. By default a process that may not create entities
    /// checks that they exist.
    pub must_declare: bool,
}

impl ConnectOptions {
    /// Returns the default options for the broker at `url`.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: Credentials::default(),
            name: "gristmill".into(),
            give_up_after_loss: None,
            must_declare: false,
        }
    }

    /// Sets the credentials that are not in the URL.
    #[must_use]
    pub fn credentials(self, credentials: Credentials) -> Self {
        Self { credentials, ..self }
    }

    /// Sets the name of this process for the broker's operator.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Sets the time for which a lost connection is restored; `None` is no limit.
    #[must_use]
    pub fn give_up_after_loss(self, time: Option<Duration>) -> Self {
        Self { give_up_after_loss: time, ..self }
    }

    /// Sets whether this process must create the entities of a lane.
    #[must_use]
    pub fn must_declare(self, must_declare: bool) -> Self {
        Self { must_declare, ..self }
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, credentials, name, give_up_after_loss, must_declare } = self;
        f.debug_struct("ConnectOptions")
            .field("credentials", credentials)
            .field("name", name)
            .field("give_up_after_loss", give_up_after_loss)
            .field("must_declare", must_declare)
            .finish_non_exhaustive()
    }
}
