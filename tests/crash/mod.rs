//! Processes and brokers that die or freeze in the middle of a job, each at a chosen place or at
//! random.

mod broker_faults;
mod crash_table;
mod drill;
