//! The producer on the memory transport.

mod harness;
mod local_input;
mod many_jobs;
mod resend_missing;
mod resume;
mod send;
mod shards;
mod watcher;
