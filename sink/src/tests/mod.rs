//! What the unit tests of several modules work with.

pub(crate) mod toy_jobs;
