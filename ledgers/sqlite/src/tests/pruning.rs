//! Pruning, down to the rows.

use std::{path::Path, time::Duration};

use gristmill_ledger::{
    Changes, IndexSet, JobChange, JobEnd, JobRecord, KeptOutputs, Ledger, LedgerLocation, LedgerReader,
    PruneReport, PruneRule,
};
use gristmill_shared::wire::{BuildShare, now_ms};
use rusqlite::Connection;

use super::damage::{ended, opened};
use crate::{SqliteAccess, SqliteLedger};

/// Rows of outputs of each job: more than are deleted in one transaction.
const OUTPUT_ROWS: u64 = 600;

fn commit(ledger: &mut SqliteLedger, record: &JobRecord) {
    let (mut done, mut refused) = (IndexSet::default(), IndexSet::default());
    (0..OUTPUT_ROWS).for_each(|row| done.insert(row * 2..row * 2 + 1));
    refused.insert(1..2);
    let outputs = (0..OUTPUT_ROWS).map(|row| KeptOutputs {
        first: row * 2,
        count: 1,
        outputs: "[1]".into(),
        tasks: Some("[1]".into()),
    });
    let report = serde_json::value::RawValue::from_string("1".into()).unwrap();
    let change = JobChange {
        done: done.take_changed().collect(),
        refused: refused.take_changed().collect(),
        outputs: outputs.collect(),
        report: Some(&report),
        builds: vec![BuildShare { version: 0, build: None, counted: 1, refused: 0 }],
        ..JobChange::new(None, record)
    };
    ledger.commit(&Changes { jobs: vec![change], ..Changes::default() }).unwrap();
}

fn reader(path: &Path) -> LedgerReader {
    LedgerReader::new(Box::new(SqliteAccess::open(path).unwrap()))
}

/// Ended jobs are pruned by age or number, with the rows of every table, beside a sink.
#[test]
fn prune_leaves_no_row_of_a_job() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut ledger = SqliteLedger::open(LedgerLocation::File(path.clone())).unwrap();
    let running = opened(1);
    commit(&mut ledger, &running);
    let now = now_ms();
    let end = |at_ms| Some(JobEnd { at_ms, ..ended(now) });
    let jobs: Vec<_> = (0..3).map(|job| JobRecord { end: end(now - 10 + job), ..opened(job) }).collect();
    jobs.iter().for_each(|record| commit(&mut ledger, record));
    let rows = |table: &str| -> u64 {
        let connection = Connection::open(&path).unwrap();
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    let tables = ["outputs", "tasks", "done", "refused", "reports", "builds"];
    let hour = Some(Duration::from_secs(3600));
    let report = reader(&path).prune(PruneRule { older_than: hour, keep: None }).unwrap();
    assert_eq!(report, PruneReport { pruned: 0, left: 4 });
    let report = reader(&path).prune(PruneRule { older_than: None, keep: Some(1) }).unwrap();
    assert_eq!(report, PruneReport { pruned: 2, left: 2 });
    let left: Vec<_> = reader(&path).jobs().unwrap().iter().map(|row| row.job).collect();
    assert_eq!(left, [jobs[2].opened.job, running.opened.job]);
    assert_eq!(tables.map(rows), [2 * OUTPUT_ROWS, 2 * OUTPUT_ROWS, 2, 2, 2, 2]);
    let report = reader(&path).prune(PruneRule { older_than: Some(Duration::ZERO), keep: None }).unwrap();
    assert_eq!(report.left, 1);
    assert_eq!(tables.map(rows), [OUTPUT_ROWS, OUTPUT_ROWS, 1, 1, 1, 1]);
    commit(&mut ledger, &opened(9)); // the sink continues
}

/// Of jobs that end together, the one submitted last is the newest.
#[test]
fn prune_breaks_ties_by_submission() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut ledger = SqliteLedger::open(LedgerLocation::File(path.clone())).unwrap();
    let jobs: Vec<_> = (0..6).map(|_| JobRecord { end: Some(ended(1)), ..opened(5) }).collect();
    for place in [3, 0, 5, 1, 4, 2] {
        commit(&mut ledger, &jobs[place]);
    }
    let left = || reader(&path).jobs().unwrap().iter().map(|row| row.job).collect::<Vec<_>>();
    let mut newest_first: Vec<_> = jobs.iter().map(|record| record.opened.job).collect();
    newest_first.sort_by_key(ToString::to_string);
    newest_first.reverse();
    assert_eq!(left(), newest_first);
    reader(&path).prune(PruneRule { older_than: None, keep: Some(2) }).unwrap();
    assert_eq!(left(), newest_first[..2]);
}
