//! Gristmill over RabbitMQ, 3.10 to 4.x: the only crate that names lapin.
//!
//! ```text
//!                          ┌─ connection ── channel ◀── writer ◀─┐
//! AmqpTransport ─ generation              └ channel ◀── writer ◀─┴─ requests ◀── publish()
//!                          └─ connection ── channel ──▶ consumer ──▶ recv()
//!                                            ▲    └───▶ consumer …
//!                                            └ acker ◀── receipts
//! ```
//!
//! - A generation is one lifetime of the two connections. When it is lost, a supervisor builds the
//!   next one, and users of the transport continue there: publishers resend unconfirmed messages,
//!   consumers subscribe again, and readers continue from their last position.
//! - Each channel has a single writer task; otherwise lapin assigns confirms to the wrong message.
//! - Messages are published in batches, so that a returned message can be told from its neighbours.
//! - Acks are sent in batches, and an unsettled delivery delays no other.

mod config;
mod connection;
mod consume;
mod doctor;
mod driver;
mod failure;
mod publish;
mod topology;
mod transport;

pub use config::{AmqpConfig, GIVE_UP_AFTER};
pub use consume::events::EVENTS_MAX_WAITING;
pub use doctor::diagnose;
pub use driver::AmqpDriver;
pub use topology::{JOURNAL_MAX_AGE, JOURNAL_MAX_BYTES};
pub use transport::AmqpTransport;

/// The largest body that is published, in bytes: the limit of RabbitMQ 4, less room for properties
/// and headers.
pub const MAX_MESSAGE: usize = (16 << 20) - (64 << 10);
