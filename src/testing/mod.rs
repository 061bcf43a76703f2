//! Support for tests: runs of a job without a broker or over a faulty one, and a private RabbitMQ
//! that may be killed.

mod run_over;

pub use gristmill_shared::testing::*;
pub use gristmill_test_support::{LocalBroker, LocalBrokerError, TlsFiles};
pub use run_over::{FleetEnd, FleetError, run_over};
