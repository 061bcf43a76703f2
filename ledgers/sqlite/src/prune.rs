//! Deletion of jobs that have ended.

use gristmill_ledger::{PruneReport, PruneRule};
use gristmill_shared::wire::now_ms;
use rusqlite::{Connection, TransactionBehavior};

use crate::columns::clamp_int;

/// Rows deleted in one transaction, so that a sink that uses the ledger never waits long.
const DELETE_MAX_ROWS: u32 = 500;

/// Deletes the chosen jobs, and the rows that earlier calls left.
pub(crate) fn delete_ended(connection: &mut Connection, rule: PruneRule) -> rusqlite::Result<PruneReport> {
    let age = rule.older_than.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let before = age.map(|age| clamp_int(now_ms().saturating_sub(age)));
    let keep = rule.keep.map(|keep| clamp_int(keep as u64));
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let pruned = transaction.execute(
        "DELETE FROM jobs WHERE state <> 'running' AND (
             finished_ms < ?1
             OR (?2 IS NOT NULL AND seq NOT IN (
                 SELECT seq FROM jobs WHERE state <> 'running'
                 ORDER BY finished_ms DESC, submitted_ms DESC, id DESC LIMIT ?2)))",
        (before, keep),
    )?;
    let left = transaction.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
    transaction.commit()?;
    // Rows of jobs that are gone, including those that an interrupted call left.
    let keyed =
        [("outputs", "seq"), ("tasks", "seq"), ("done", "seq"), ("refused", "seq"), ("reports", "job")];
    for (table, key) in keyed {
        delete_orphans(
            connection,
            &format!("{key} IN (SELECT {key} FROM {table} WHERE job NOT IN (SELECT seq FROM jobs) LIMIT ?1)"),
            table,
        )?;
    }
    delete_orphans(
        connection,
        "(job, task) IN (SELECT job, task FROM failures WHERE job NOT IN (SELECT seq FROM jobs) LIMIT ?1)",
        "failures",
    )?;
    delete_orphans(
        connection,
        "(job, version, build) IN
            (SELECT job, version, build FROM builds WHERE job NOT IN (SELECT seq FROM jobs) LIMIT ?1)",
        "builds",
    )?;
    Ok(PruneReport { pruned: pruned as u64, left })
}

fn delete_orphans(connection: &Connection, which: &str, table: &str) -> rusqlite::Result<()> {
    let mut delete = connection.prepare(&format!("DELETE FROM {table} WHERE {which}"))?;
    while delete.execute([DELETE_MAX_ROWS])? > 0 {}
    Ok(())
}
