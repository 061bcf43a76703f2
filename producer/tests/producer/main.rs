//! The producer on the memory transport.

mod harness;
mod many_jobs;
mod missing;
mod resuming;
mod sending;
mod shards;
mod watching;
