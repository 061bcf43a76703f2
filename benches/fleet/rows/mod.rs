//! The rows of the table, with a file for each kind of question.

pub(crate) mod baseline;
pub(crate) mod batches;
pub(crate) mod cores;
pub(crate) mod latency;
pub(crate) mod memory;
pub(crate) mod stop;
pub(crate) mod tail;
