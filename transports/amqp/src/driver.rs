//! The driver, by which a program finds this transport.

use std::sync::Arc;

use async_trait::async_trait;
use gristmill_shared::{
    ConnectOptions, Finding, FleetRole, Lane, Transport, TransportDriver, TransportError,
};

use crate::{
    AmqpTransport,
    config::{AmqpConfig, URL_FORM},
    doctor::diagnose,
};

/// The driver of `amqp://` and `amqps://`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct AmqpDriver;

impl AmqpDriver {
    /// The URL of a RabbitMQ on this machine as it is installed.
    pub const LOCAL_URL: &str = "amqp://guest@localhost:5672";
}

#[async_trait]
impl TransportDriver for AmqpDriver {
    fn schemes(&self) -> &'static [&'static str] {
        &["amqp", "amqps"]
    }

    fn url_form(&self) -> &'static str {
        URL_FORM
    }

    /// The transport logs every connection problem itself, once.
    fn log_directives(&self) -> &'static [&'static str] {
        &["lapin=off"]
    }

    fn check_url(&self, url: &str) -> Result<(), TransportError> {
        AmqpConfig::check(url)
    }

    async fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError> {
        Ok(AmqpTransport::connect(AmqpConfig::from_options(options)?).await?)
    }

    async fn diagnose(
        &self,
        options: &ConnectOptions,
        lane: &Lane,
        role: Option<FleetRole>,
    ) -> Result<Vec<Finding>, TransportError> {
        Ok(diagnose(&AmqpConfig::from_options(options)?, lane, role).await)
    }
}
