//! Shared parts of the unit tests.

pub(crate) mod toy_jobs;
