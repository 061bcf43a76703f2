//! Pulls batches, runs their tasks on slots, publishes the outcomes, and only then settles.
//!
//! ```text
//! intake (async) ──▶ slots (threads, user code) ──▶ handoff (async) ──▶ results, retries ──▶ ack
//! ```

mod beat;
mod complaints;
mod crew;
mod error;
mod handoff;
mod held;
mod in_hand;
mod intake;
mod isolate;
mod job_cache;
mod outputs;
mod pace;
mod refused;
mod release;
mod seat;
mod sequel;
mod shop;
mod slot;
mod suspicion;
mod waiting;
mod worker;

pub use error::WorkerError;
pub use isolate::serve_isolated;
pub use worker::{DEFAULT_GRACE, DEFAULT_STOP_GRACE, Worker, WorkerReport};
