//! Forgets jobs that have ended.

use std::{path::Path, time::Duration};

use gristmill_shared::wire::now_ms;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde::Serialize;

use super::{LedgerPlace, columns::int, connect, failed, place, schema};
use crate::SinkError;

/// How many rows are deleted in one transaction, so that a sink that works with the ledger never waits for long.
const ROWS_AT_A_TIME: u32 = 500;

/// Which of the jobs that have ended are forgotten: those that any of these says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRule {
    /// Those that ended longer ago than this.
    pub older_than: Option<Duration>,
    /// All but this many, the newest.
    pub keep: Option<usize>,
}

/// What was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Jobs that are forgotten.
    pub pruned: u64,
    /// Jobs that are left, running ones included.
    pub left: u64,
}

/// Forgets jobs that have ended, with everything that belongs to them. A sink may work with the ledger meanwhile. If
/// it is broken off, the jobs are forgotten, and the next one clears away what is left of them. Blocking.
///
/// # Errors
/// If there is no ledger, or it cannot be written.
pub fn prune(path: &Path, rule: PruneRule) -> Result<PruneReport, SinkError> {
    place::inspect(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    if let schema::Found::Empty = schema::look(&connection, path)? {
        return Err(SinkError::NotALedger { path: path.into(), why: "it is an empty file".into() });
    }
    let report = forget(&mut connection, rule);
    report.map_err(|source| failed(&LedgerPlace::File(path.into()), "jobs are forgotten", source))
}

fn forget(connection: &mut Connection, rule: PruneRule) -> rusqlite::Result<PruneReport> {
    let age = rule.older_than.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let before = age.map(|age| int(now_ms().saturating_sub(age)));
    let keep = rule.keep.map(|keep| int(keep as u64));
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let pruned = transaction.execute(
        "DELETE FROM jobs WHERE state <> 'running' AND (
             finished_ms < ?1
             OR (?2 IS NOT NULL AND seq NOT IN (
                 SELECT seq FROM jobs WHERE state <> 'running' ORDER BY finished_ms DESC, seq DESC LIMIT ?2)))",
        (before, keep),
    )?;
    let left = transaction.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
    transaction.commit()?;
    // Only now, and also what an earlier one left: rows of jobs that are not there.
    for (table, key) in [("outputs", "seq"), ("done", "seq"), ("reports", "job")] {
        sweep(
            connection,
            &format!("{key} IN (SELECT {key} FROM {table} WHERE job NOT IN (SELECT seq FROM jobs) LIMIT ?1)"),
            table,
        )?;
    }
    sweep(
        connection,
        "(job, task) IN (SELECT job, task FROM failures WHERE job NOT IN (SELECT seq FROM jobs) LIMIT ?1)",
        "failures",
    )?;
    Ok(PruneReport { pruned: pruned as u64, left })
}

fn sweep(connection: &Connection, which: &str, table: &str) -> rusqlite::Result<()> {
    let mut delete = connection.prepare(&format!("DELETE FROM {table} WHERE {which}"))?;
    while delete.execute([ROWS_AT_A_TIME])? > 0 {}
    Ok(())
}
