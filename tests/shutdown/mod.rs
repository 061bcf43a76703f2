//! Shutdown: roles that receive a signal or are killed while they work, and how their jobs
//! continue.

mod producer;
mod roles;
mod worker;
