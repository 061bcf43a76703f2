//! The statements of each table.

pub(crate) mod build_rows;
pub(crate) mod dead_rows;
pub(crate) mod job_rows;
pub(crate) mod kept_rows;
pub(crate) mod outbox_rows;
pub(crate) mod outcome_rows;
pub(crate) mod parked_rows;
