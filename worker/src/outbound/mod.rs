//! Outcomes on their way to the broker: built, merged, published, and only then acked.

mod ack_guard;
mod merge;
mod outcome;
mod oversize;
mod publisher;

pub(crate) use outcome::{ChunkCounts, OutcomeBuilder, count_retries, next_retry_step};
pub(crate) use publisher::{Outbound, OutboundQueue, PublishRequest, outbound_channel, publish_outbound};
