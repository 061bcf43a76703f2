//! The programs in `examples/`: a user's own jobs, as the documentation shows them.

pub(crate) mod collatz;
mod commands;
mod fetch;
mod service;
mod state;
