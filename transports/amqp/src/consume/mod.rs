//! Consumers of queues and readers of the journal and of events, which recover by themselves.

mod consumer;
pub(crate) mod events;
mod journal;
mod resubscribe;
mod stream_reader;
mod unsettled;

pub(crate) use self::{consumer::AmqpConsumer, journal::AmqpJournal, stream_reader::StreamReader};
