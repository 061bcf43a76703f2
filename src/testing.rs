//! Support for tests and fault drills: runs of a job without a broker or over a faulty one, and a
//! private RabbitMQ that may be killed.

mod error;
mod local_broker;
mod node;
mod node_dir;
mod run_over;
mod watchdog;

pub use error::LocalBrokerError;
pub use gristmill_shared::testing::*;
pub use local_broker::LocalBroker;
pub use node_dir::TlsFiles;
pub use run_over::{FleetEnd, FleetError, run_over};
