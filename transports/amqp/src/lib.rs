//! Gristmill over RabbitMQ, 3.10 to 4.x: the only crate that names lapin.
//!
//! ```text
//!                          ┌─ connection ── channel ◀── sender ◀─┐
//! AmqpTransport ─ generation              └ channel ◀── sender ◀─┴─ requests ◀── publish()
//!                          └─ connection ── channel ──▶ consumer ──▶ recv()
//!                                            ▲    └───▶ consumer …
//!                                            └ acker ◀── receipts
//! ```
//!
//! - A generation is one life of the two connections. When it is lost, a supervisor builds the next, and what came from
//!   the transport goes on there: publishers send again what was unconfirmed, consumers and readers begin again where
//!   they were.
//! - A channel has one task that writes to it: lapin hands confirms to the wrong message otherwise.
//! - Letters are sent in waves, so that a returned one is told from its neighbours.
//! - Acks are sent together, and nothing that stays unsettled holds them up.

mod config;
mod connection;
mod consume;
mod doctor;
mod failure;
mod publish;
mod topology;
mod transport;

pub use config::{AmqpConfig, GIVE_UP_AFTER};
pub use connection::credentials::Access;
pub use consume::events::EVENTS_MAX_WAITING;
pub use doctor::{Finding, Part, Verdict, examine};
pub use topology::{JOURNAL_MAX_AGE, JOURNAL_MAX_BYTES};
pub use transport::AmqpTransport;

/// The largest body that is published, in bytes: what RabbitMQ 4 takes, less some room for what belongs to it.
pub const MAX_MESSAGE: usize = (16 << 20) - (64 << 10);
