//! Forgets jobs that have ended.

use std::{path::Path, time::Duration};

use gristmill_shared::wire::now_ms;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde::Serialize;

use super::{LedgerPlace, columns::int, connect, failed, location, schema};
use crate::SinkError;

/// How many rows are deleted in one transaction, so that a sink that works with the ledger never waits for long.
const ROWS_AT_A_TIME: u32 = 500;

/// Which of the jobs that have ended are forgotten: those that any of these says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRule {
    /// Those that ended longer ago than this.
    pub older_than: Option<Duration>,
    /// All but this many: those that ended last, and of several that ended together those that were submitted last.
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
    location::inspect(path)?;
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
                 SELECT seq FROM jobs WHERE state <> 'running'
                 ORDER BY finished_ms DESC, submitted_ms DESC, id DESC LIMIT ?2)))",
        (before, keep),
    )?;
    let left = transaction.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
    transaction.commit()?;
    // Only now, and also what an earlier one left: rows of jobs that are not there.
    let keyed =
        [("outputs", "seq"), ("tasks", "seq"), ("done", "seq"), ("refused", "seq"), ("reports", "job")];
    for (table, key) in keyed {
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
    sweep(
        connection,
        "(job, version, build) IN
            (SELECT job, version, build FROM builds WHERE job NOT IN (SELECT seq FROM jobs) LIMIT ?1)",
        "builds",
    )?;
    Ok(PruneReport { pruned: pruned as u64, left })
}

fn sweep(connection: &Connection, which: &str, table: &str) -> rusqlite::Result<()> {
    let mut delete = connection.prepare(&format!("DELETE FROM {table} WHERE {which}"))?;
    while delete.execute([ROWS_AT_A_TIME])? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{Lane, Message};

    use super::*;
    use crate::{
        LedgerReader,
        engine::Clerk,
        ledger::Ledger,
        tests::toy_jobs::{Keeper, Submitted, app, delivery, registry},
    };

    #[test]
    fn ended_jobs_go_by_age_or_number_while_a_sink_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(LedgerPlace::File(path.clone())).unwrap();
        let mut clerk = Clerk::new(ledger, registry(), Lane::default(), app());
        let running = Submitted::toy();
        let ended: Vec<_> = (0..3).map(|_| Submitted::new(&Keeper {})).collect();
        let spans: Vec<String> = (0..600).map(|index| format!(r#"["{index}"]"#)).collect();
        let take = |mut clerk: Clerk, messages: Vec<Message>| {
            for message in messages {
                clerk.take(delivery(message)).unwrap();
            }
            clerk.commit().unwrap().0
        };
        clerk = take(clerk, vec![running.opened(), running.done(0..9)]);
        for job in &ended {
            // Apart from one another, so that nothing is joined.
            let spans: Vec<_> = (0..)
                .map(|index| index * 2)
                .zip(&spans)
                .map(|(index, text)| (index, 1, text.as_str()))
                .collect();
            clerk = take(clerk, vec![job.opened(), job.spans(&spans, &[1, 3], 0), job.cancelled()]);
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

        // The sink does not mind.
        clerk = take(clerk, vec![running.done(9..10), running.sealed(10)]);
        assert!(reader.verify(running.id).unwrap().ok);
        drop(clerk);
    }

    #[test]
    fn of_jobs_that_end_together_the_one_submitted_last_is_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(LedgerPlace::File(path.clone())).unwrap();
        let mut clerk = Clerk::new(ledger, registry(), Lane::default(), app());
        let mut jobs: Vec<_> = (0..6).map(|_| Submitted::toy()).collect();
        for place in [3, 0, 5, 1, 4, 2] {
            clerk.take(delivery(jobs[place].opened())).unwrap();
            clerk.take(delivery(jobs[place].cancelled())).unwrap();
        }
        drop(clerk.commit().unwrap());
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
