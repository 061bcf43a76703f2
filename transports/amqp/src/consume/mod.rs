//! Consumers of queues and readers of the journal and of events, which survive a lost connection.

pub(crate) mod consumer;
pub(crate) mod events;
pub(crate) mod journal;
pub(crate) mod resubscribe;
pub(crate) mod stream_reader;
pub(crate) mod unsettled;
