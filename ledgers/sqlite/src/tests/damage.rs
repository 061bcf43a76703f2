//! The proof of a job finds rows that do not add up.

use gristmill_ledger::{
    Changes, IndexSet, JobChange, JobEnd, JobRecord, JobState, KeptOutputs, Ledger, LedgerLocation,
    LedgerReader, Seal, StoredFailure, Verification,
};
use gristmill_shared::{Conclusion, JobId, Kind, Lane, Plan, Policy, Round, wire::Opened};
use rusqlite::Connection;
use serde_json::value::RawValue;

use crate::{SqliteAccess, SqliteLedger};

/// Returns the record of a job that was just opened.
pub(super) fn opened(submitted_ms: u64) -> JobRecord {
    let opened = Opened {
        job: JobId::generate(),
        kind: Kind::new("sample").unwrap(),
        spec: RawValue::from_string("{}".into()).unwrap(),
        policy: Policy::default(),
        plan: Plan::unknown(),
        lane: Lane::default(),
        submitted_ms,
        version: 0,
        build: None,
    };
    JobRecord::new(opened, true)
}

/// Returns the end of a job.
pub(super) fn ended(at_ms: u64) -> JobEnd {
    let conclusion = Conclusion::no_answer("nothing");
    JobEnd { state: JobState::Finished, stopped: None, skipped: 0, conclusion, at_ms }
}

/// A finished job of ten tasks, of which task 7 failed, in a ledger that is then tampered with.
fn tampered(sql: &str) -> Verification {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut record = opened(1);
    record.seal = Some(Seal { total: 10, digest: "digest".into() });
    record.end = Some(ended(2));
    (record.counts.done, record.counts.failed, record.counts.reached) = (9, 1, 10);
    let mut done = IndexSet::default();
    done.insert(0..7);
    done.insert(8..10);
    let failure = StoredFailure {
        round: Round(0),
        reason: "it failed".into(),
        attempts: 1,
        losses: 0,
        worker: None,
        payload: None,
    };
    let kept = |first: u64, count: usize| {
        let outputs = format!("[{}]", vec!["1"; count].join(","));
        KeptOutputs { first, count: count as u64, outputs, tasks: None }
    };
    let change = JobChange {
        done: done.take_changed().collect(),
        failures: vec![(7, Some(failure))],
        outputs: vec![kept(0, 7), kept(8, 2)],
        ..JobChange::new(None, &record)
    };
    let mut ledger = SqliteLedger::open(LedgerLocation::File(path.clone())).unwrap();
    ledger.commit(&Changes { jobs: vec![change], ..Changes::default() }).unwrap();
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let mut reader = LedgerReader::new(Box::new(SqliteAccess::open(&path).unwrap()));
    reader.verify(record.opened.job).unwrap()
}

#[test]
fn verified_job_has_summary() {
    let verification = tampered("");
    assert!(verification.ok && verification.problems.is_empty(), "{verification:?}");
    assert_eq!(
        verification.to_string(),
        "10 tasks: 9 done, 1 failed, 0 skipped, 0 without an outcome; 0 duplicates and 0 late outcomes ignored"
    );
}

#[test]
fn verify_finds_contradictions() {
    let cases = [
        ("DELETE FROM done", "counts 9 tasks done, but has 0"),
        ("DELETE FROM failures", "counts 1 failures, but has 0"),
        ("UPDATE jobs SET done = 8", "counts 8 tasks done, but has 9"),
        ("UPDATE failures SET task = 3", "1 tasks are both done and failed"),
        ("UPDATE jobs SET sealed_total = 9", "there are 9 tasks, but task 9 has an outcome"),
        ("DELETE FROM outputs WHERE first = 8", "counts 9 outputs to keep, but has 7"),
        ("UPDATE outputs SET first = 7 WHERE first = 8", "the kept outputs are not those of the tasks done"),
        ("UPDATE jobs SET state = 'stopped', skipped = 3", "counts 3 tasks skipped, but 0 are"),
    ];
    for (sql, problem) in cases {
        let verification = tampered(sql);
        let found = verification.problems.join("; ");
        assert!(!verification.ok && found.contains(problem), "{sql}: {found:?}");
    }
}

#[test]
fn gaps_are_listed_as_ranges() {
    let verification =
        tampered("UPDATE jobs SET sealed_total = 20; DELETE FROM failures; UPDATE jobs SET failed = 0");
    assert_eq!((verification.gaps, verification.missing), (vec![7..8, 10..20], 11));
    assert!(!verification.ok);
    let running = tampered("UPDATE jobs SET state = 'running'");
    assert!(!running.ok && running.missing == 0, "a running job is not proven, whatever it has");
}
