//! The worker: takes batches, runs their tasks on slots, publishes the outcomes, and only then
//! settles.
//!
//! ```text
//! consumer (async) ──▶ slots (threads, user code) ──▶ publisher (async) ──▶ broker ──▶ ack
//! ```

mod consumer;
mod context;
mod delivery;
mod error;
mod executor;
mod heartbeat;
mod isolate;
mod outbound;
mod poison;
mod release;
mod run_queue;
mod worker;

pub use error::WorkerError;
pub use isolate::serve_isolated;
pub use worker::{DEFAULT_GRACE, DEFAULT_STOP_GRACE, Worker, WorkerReport};
