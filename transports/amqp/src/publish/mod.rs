//! Publishing: messages are converted to AMQP, sent in batches and confirmed one by one.

mod confirm_batch;
mod frame;
pub(crate) mod properties;
mod publisher;

pub(crate) use self::publisher::AmqpPublisher;
