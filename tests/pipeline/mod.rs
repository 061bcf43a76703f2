//! Whole jobs, from the split to the exact answer.

mod adaptive;
mod bad_transport;
mod floats;
mod library;
mod local_input;
mod new_scheme;
mod per_job;
mod shards;
mod stall;
mod versions;
mod whole_jobs;
