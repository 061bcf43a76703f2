//! The foundation of the tests: a broker, and a site of processes on a lane of its own.

pub(crate) mod broker;
#[cfg(feature = "otlp")]
mod collector;
mod own_broker;
pub(crate) mod process_table;
mod scrape_target;
mod site;
mod test_process;

use std::{future::Future, time::Duration};

#[cfg(feature = "otlp")]
pub(crate) use collector::{Collector, ExportedSpan};
pub(crate) use own_broker::OwnBroker;
pub(crate) use scrape_target::{Samples, ScrapeTarget};
pub(crate) use site::Site;
pub(crate) use test_process::{Process, ProcessOutput};

/// Bound for every wait, after which a test fails. Generous, since machines are slow and shared,
/// and since only a failing test waits that long.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Waits for a future, at most for [`WAIT_TIMEOUT`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(WAIT_TIMEOUT, future)
        .await
        .unwrap_or_else(|_| panic!("waited {WAIT_TIMEOUT:?} for {what}"))
}

/// The digest of `node`.
pub(crate) const NODE_DIGEST: &str = "f8e966d1e207d02c44511a58dccff2f5429e9a3b";
/// The digest of `aaaa`.
pub(crate) const AAAA_DIGEST: &str = "70c881d4a26984ddce795f6f71817c9cf4480e79";
