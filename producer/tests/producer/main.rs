//! The producer on the memory transport.

mod harness;
mod many_jobs;
mod resend_missing;
mod resume;
mod send;
mod shards;
mod watcher;
