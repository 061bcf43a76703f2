//! What the tests stand on: a broker, and a site of processes on a lane of its own.

pub(crate) mod broker;
#[cfg(feature = "otlp")]
mod collector;
mod metrics_endpoint;
mod own_broker;
pub(crate) mod process_table;
mod site;
mod test_process;

use std::{future::Future, time::Duration};

#[cfg(feature = "otlp")]
pub(crate) use collector::{Collector, Exported};
pub(crate) use own_broker::OwnBroker;
pub(crate) use test_process::{Ended, Process};
pub(crate) use metrics_endpoint::{Samples, Scraped};
pub(crate) use site::Site;

/// How long anything may take before a test fails. Generous: machines are slow and shared, and nobody waits for it
/// unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits, but not for ever.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// The digest of `node`.
pub(crate) const NODE: &str = "f8e966d1e207d02c44511a58dccff2f5429e9a3b";
/// The digest of `aaaa`.
pub(crate) const AAAA: &str = "70c881d4a26984ddce795f6f71817c9cf4480e79";
