//! `--metrics`: the HTTP endpoint for metrics, liveness and readiness.

use clap::Args;
use gristmill_observe::{MetricsError, MetricsServer};
use gristmill_shared::Transport;

use super::Context;
use crate::{Exit, exit::Failure};

/// The reason why a starting sink is not ready.
pub(crate) const LANE_NOT_CLAIMED: &str = "the lane is not claimed yet";

/// The address of the metrics endpoint.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetricsFlags {
    /// Serve HTTP at HOST:PORT, such as 127.0.0.1:9400, while this command serves or sends:
    /// /metrics for Prometheus, /healthz, /readyz (200 while the broker works); anyone who can
    /// connect can read it, so choose the address with care
    #[arg(long, global = true, env = "GRISTMILL_METRICS", value_name = "ADDR")]
    metrics: Option<String>,
}

/// The metrics endpoint, if one is configured.
#[derive(Debug)]
pub(crate) struct MetricsEndpoint(Option<MetricsServer>);

impl MetricsFlags {
    /// Opens the endpoint. Called before connecting, so that a program that waits for the broker
    /// can be observed.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(crate) async fn open(&self, context: &Context, role: &str) -> Result<MetricsEndpoint, Failure> {
        let Some(address) = &self.metrics else { return Ok(MetricsEndpoint(None)) };
        let server = MetricsServer::open(address, role, context.version).await;
        server.map(|server| MetricsEndpoint(Some(server))).map_err(|error| match error {
            MetricsError::Listen(error) => Failure::usage(format_args!(
                "cannot listen on {address} for --metrics: {error} (hint: expected HOST:PORT, as 127.0.0.1:9400, of this \
                 machine and not in use)"
            )),
            error @ MetricsError::RecorderInstalled => Failure::new(Exit::Bug, error),
        })
    }
}

impl MetricsEndpoint {
    /// Marks this process as not ready, for this reason, regardless of the broker. With None,
    /// readiness follows the broker.
    pub(crate) fn set_not_ready(&self, to_do: Option<&'static str>) {
        if let Some(server) = &self.0 {
            server.set_pending(to_do);
        }
    }

    /// Reports the health of this transport from now on.
    pub(crate) fn watch_transport(&mut self, transport: &dyn Transport) {
        if let Some(server) = &mut self.0 {
            server.follow_health(transport);
        }
    }
}
