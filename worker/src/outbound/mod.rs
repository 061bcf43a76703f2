//! Outcomes on their way to the broker: built, merged, published, and only then acked.

mod ack_guard;
mod batch_outcome;
mod merge;
mod oversize;
mod result_publisher;

pub(crate) use batch_outcome::{ChunkCounts, OutcomeBuilder, count_retries, next_retry_step};
pub(crate) use result_publisher::{
    Outbound, OutboundQueue, PublishRequest, outbound_channel, publish_outbound,
};
