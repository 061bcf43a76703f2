//! `--metrics`: what others may see of this process.

use clap::Args;
use gristmill_shared::Transport;

use super::Context;
use crate::{exit::Failure, observe::Window};

/// Why a sink is not ready at first.
pub(crate) const LANE_NOT_CLAIMED: &str = "the lane is not claimed yet";

/// Where others may look.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetricsFlags {
    /// Answer at HOST:PORT, as 127.0.0.1:9400, while this serves or sends: /metrics for Prometheus, /healthz, /readyz (200
    /// while the broker works); to whoever can connect, so choose the address with care
    #[arg(long, global = true, env = "GRISTMILL_METRICS", value_name = "ADDR")]
    metrics: Option<String>,
}

/// A window, if one was asked for.
#[derive(Debug)]
pub(crate) struct Watched(Option<Window>);

impl MetricsFlags {
    /// Opens the window; before the broker is asked for, so that one who waits for it can be seen to.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub(crate) async fn open(&self, context: &Context, role: &str) -> Result<Watched, Failure> {
        Ok(Watched(match &self.metrics {
            Some(address) => Some(Window::open(address, role, context.version).await?),
            None => None,
        }))
    }
}

impl Watched {
    /// Not ready, for this reason, however the broker is; with none, as ready as the broker is.
    pub(crate) fn wait_for(&self, to_do: Option<&'static str>) {
        if let Some(window) = &self.0 {
            window.wait_for(to_do);
        }
    }

    /// Shows how this transport is, from now on.
    pub(crate) fn follow(&mut self, transport: &dyn Transport) {
        if let Some(window) = &mut self.0 {
            window.follow(transport);
        }
    }
}
