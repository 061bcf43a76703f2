//! The sink: folds results into reports, each task once, and keeps the ledger.
//!
//! The ledger is a store behind [`gristmill_ledger::Ledger`], which the caller opens.
//!
//! Results arrive on the broker's side ([`Sink::run_until`]) and pass to one thread, which folds
//! them and commits them in groups. Only committed results are acknowledged, and their consequences
//! are published from the ledger, repeatedly until the broker confirms them. A sink can therefore
//! be killed at any time.

mod engine;
mod error;
mod job;
mod lane_lock;
mod outbox;
mod outbox_publisher;
mod sink;
#[cfg(test)]
mod tests;

pub use error::SinkError;
pub use sink::{ClaimedSink, Sink, SinkConfig, SinkReport};
