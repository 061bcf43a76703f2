//! What tests and fault drills stand on: runs of a job without a broker or over a bad one, and a private RabbitMQ that may be killed.

mod error;
mod fleet;
mod local_broker;
mod node;
mod place;
mod watchdog;

pub use error::LocalBrokerError;
pub use fleet::{FleetEnd, FleetError, run_over};
pub use gristmill_shared::testing::*;
pub use local_broker::LocalBroker;
pub use place::TlsFiles;
