//! Publishing: messages with their AMQP properties, sent in batches and confirmed one by one.

pub(crate) mod confirm_batch;
pub(crate) mod frame;
pub(crate) mod properties;
pub(crate) mod publisher;
