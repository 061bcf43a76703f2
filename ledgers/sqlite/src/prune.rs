//! Deletion of jobs that have ended.

use std::{path::Path, time::Duration};

use gristmill_shared::wire::now_ms;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde::Serialize;

use super::{LedgerLocation, columns::clamp_int, connect, ledger_error, location, schema};
use crate::SinkError;

/// Rows deleted in one transaction, so that a sink that uses the ledger never waits long.
const DELETE_MAX_ROWS: u32 = 500;

/// The choice of ended jobs to delete: those that either field selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRule {
    /// Jobs that ended longer ago than this.
    pub older_than: Option<Duration>,
    /// All but this many: the last to end are kept, and of those that ended together the last
    /// submitted.
    pub keep: Option<usize>,
}

/// The result of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Jobs that were deleted.
    pub pruned: u64,
    /// Jobs that are left, including running ones.
    pub left: u64,
}

/// Deletes jobs that have ended, with all their rows. A sink may use the ledger meanwhile. If this
/// is interrupted, the jobs are gone, and the next call deletes their remaining rows. Blocking.
///
/// # Errors
/// If there is no ledger, or it cannot be written.
pub fn prune(path: &Path, rule: PruneRule) -> Result<PruneReport, SinkError> {
    location::check_file(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    if let schema::DatabaseKind::Empty = schema::identify(&connection, path)? {
        return Err(SinkError::NotALedger { path: path.into(), why: "it is an empty file".into() });
    }
    let report = delete_ended(&mut connection, rule);
    report.map_err(|source| ledger_error(&LedgerLocation::File(path.into()), "jobs are forgotten", source))
}

fn delete_ended(connection: &mut Connection, rule: PruneRule) -> rusqlite::Result<PruneReport> {
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

#[cfg(test)]
mod tests {
    use gristmill_shared::{Lane, Message};

    use super::*;
    use crate::{
        LedgerReader,
        engine::LedgerEngine,
        ledger::Ledger,
        tests::toy_jobs::{KeeperJob, SubmittedJob, app, delivery, registry},
    };

    /// Ended jobs are pruned by age or number while a sink uses the ledger.
    #[test]
    fn prune_works_beside_sink() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(LedgerLocation::File(path.clone())).unwrap();
        let mut engine = LedgerEngine::new(ledger, registry(), Lane::default(), app());
        let running = SubmittedJob::toy();
        let ended: Vec<_> = (0..3).map(|_| SubmittedJob::new(&KeeperJob {})).collect();
        let spans: Vec<String> = (0..600).map(|index| format!(r#"["{index}"]"#)).collect();
        let commit = |mut engine: LedgerEngine, messages: Vec<Message>| {
            for message in messages {
                engine.accept_result(delivery(message)).unwrap();
            }
            engine.commit().unwrap().0
        };
        engine = commit(engine, vec![running.opened(), running.done(0..9)]);
        for job in &ended {
            // Apart from one another, so that no spans are joined.
            let spans: Vec<_> = (0..)
                .map(|index| index * 2)
                .zip(&spans)
                .map(|(index, text)| (index, 1, text.as_str()))
                .collect();
            engine = commit(engine, vec![job.opened(), job.spans(&spans, &[1, 3], 0), job.cancelled()]);
        }
        let reader = LedgerReader::open(&path).unwrap();
        let left = || reader.jobs().unwrap().iter().map(|row| row.job).collect::<Vec<_>>();
        let hour = Some(Duration::from_secs(3600));

        let report = prune(&path, PruneRule { older_than: hour, keep: None }).unwrap();
        assert_eq!(report, PruneReport { pruned: 0, left: 4 });
        let report = prune(&path, PruneRule { older_than: None, keep: Some(1) }).unwrap();
        assert_eq!(report, PruneReport { pruned: 2, left: 2 });
        assert_eq!(left(), [ended[2].id, running.id]);
        assert!(reader.verify(ended[2].id).unwrap().ok);
        let rows = |table: &str| -> u64 {
            let connection = Connection::open(&path).unwrap();
            connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!(["outputs", "failures", "done", "reports"].map(rows), [600, 2, 2, 2]);
        let report = prune(&path, PruneRule { older_than: Some(Duration::ZERO), keep: None }).unwrap();
        assert_eq!((report.left, left()), (1, vec![running.id]));

        // The sink continues.
        engine = commit(engine, vec![running.done(9..10), running.sealed(10)]);
        assert!(reader.verify(running.id).unwrap().ok);
        drop(engine);
    }

    /// Of jobs that end together, the one submitted last is the newest.
    #[test]
    fn prune_breaks_ties_by_submission() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(LedgerLocation::File(path.clone())).unwrap();
        let mut engine = LedgerEngine::new(ledger, registry(), Lane::default(), app());
        let mut jobs: Vec<_> = (0..6).map(|_| SubmittedJob::toy()).collect();
        for place in [3, 0, 5, 1, 4, 2] {
            engine.accept_result(delivery(jobs[place].opened())).unwrap();
            engine.accept_result(delivery(jobs[place].cancelled())).unwrap();
        }
        drop(engine.commit().unwrap());
        Connection::open(&path).unwrap().execute("UPDATE jobs SET finished_ms = 1", []).unwrap();
        let reader = LedgerReader::open(&path).unwrap();
        let left = || reader.jobs().unwrap().iter().map(|row| row.job).collect::<Vec<_>>();
        jobs.reverse();
        let newest_first: Vec<_> = jobs.iter().map(|job| job.id).collect();
        assert_eq!(left(), newest_first);
        prune(&path, PruneRule { older_than: None, keep: Some(2) }).unwrap();
        assert_eq!(left(), newest_first[..2]);
    }
}
