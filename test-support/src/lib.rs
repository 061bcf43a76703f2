//! A private RabbitMQ node that may be killed, paused and restarted.
//!
//! The end-to-end tests, the fault drill and the benchmark of whole fleets run on it. A watchdog
//! process removes it if its owner is killed.

mod error;
mod local_broker;
mod node;
mod node_dir;
mod watchdog;

pub use error::LocalBrokerError;
pub use local_broker::LocalBroker;
pub use node::is_stopped;
pub use node_dir::TlsFiles;
