//! Tests of SQLite as a ledger: the promises of every ledger, its files, and damage to its rows.

mod conformance;
mod damage;
mod files;
mod pruning;
