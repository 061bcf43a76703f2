//! A ledger in one SQLite file, or in memory. All SQL is in this crate.

mod access;
mod columns;
mod location;
mod message_columns;
mod prune;
mod schema;
mod store;
mod tables;
#[cfg(test)]
mod tests;

pub use access::SqliteAccess;
pub use store::SqliteLedger;
