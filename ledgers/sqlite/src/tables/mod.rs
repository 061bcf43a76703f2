//! The tables of the ledger: modules that read and write their rows within the caller's
//! transaction.

pub(crate) mod builds;
pub(crate) mod dead_rows;
pub(crate) mod job_record;
pub(crate) mod ordered_outputs;
pub(crate) mod outbox_rows;
pub(crate) mod outcome_rows;
pub(crate) mod parked_rows;
