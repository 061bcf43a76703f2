//! The way of outcomes to the broker: built from what tasks gave, merged, published, and only then
//! acked.

mod merge;
mod outcome;
mod oversize;
mod publisher;

pub(crate) use outcome::{ChunkCounts, Sequel, next_wait, retried};
pub(crate) use publisher::{Handoff, Handoffs, Upshot, hand_on_all, handoffs};
