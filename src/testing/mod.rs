//! What tests and fault drills stand on: a private RabbitMQ that may be killed at will.

mod local_broker;
mod node;
mod place;
mod watchdog;

pub use local_broker::{LocalBroker, LocalBrokerError};
