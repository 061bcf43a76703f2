//! Files that are ledgers, and files that are not.

use std::fs;

use super::*;
use crate::{LedgerReader, tests::toy_jobs::SubmittedJob};

#[test]
fn foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("notes"), "eggs, milk").unwrap();
    fs::create_dir(path("folder")).unwrap();
    rusqlite::Connection::open(path("foreign"))
        .unwrap()
        .execute_batch("CREATE TABLE birds (name TEXT)")
        .unwrap();
    fs::write(path("torn"), b"SQLite format 3\0 and then something else").unwrap();
    drop(Sink::open(config(&path("future"))).unwrap());
    rusqlite::Connection::open(path("future")).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    let cases = [
        ("notes", "is not a ledger: it is no SQLite file (hint:"),
        ("folder", "is not a ledger: it is a directory"),
        ("notes/ledger", "is not a ledger: a part of its path is a file"),
        ("foreign", "is not a ledger: it is the SQLite database of another program"),
        ("torn", "is not a ledger: it is no SQLite file"),
        ("future", "has version 9, and this program reads version 3 only (hint:"),
    ];
    for (name, expected) in cases {
        let before = fs::read(path(name)).ok();
        let errors = [
            Sink::open(config(&path(name))).unwrap_err(),
            LedgerReader::open(&path(name)).unwrap_err(),
            crate::prune(&path(name), crate::PruneRule { older_than: None, keep: None }).unwrap_err(),
        ];
        for error in errors {
            let error = error.to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
        assert_eq!(fs::read(path(name)).ok(), before, "{name} was changed");
    }
    let error = LedgerReader::open(&path("nowhere")).unwrap_err();
    assert!(matches!(error, SinkError::Missing { .. }), "{error}");
    assert!(!path("nowhere").exists());
}

/// An empty file becomes a ledger with its own id.
#[test]
fn empty_file_becomes_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    fs::write(&paths[0], "").unwrap();
    let ids = paths.each_ref().map(|path| Sink::open(config(path)).unwrap().ledger_id().clone());
    assert_ne!(ids[0], ids[1]);
    assert_eq!(*Sink::open(config(&paths[0])).unwrap().ledger_id(), ids[0]);
}

#[tokio::test]
async fn other_version_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let (transport, job) = (MemoryTransport::new(), SubmittedJob::toy());
    let sink = RunningSink::start(config(&path), &transport);
    publish(&transport, [job.opened(), job.done(0..3)]).await;
    journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
    sink.stop().await.unwrap();
    let reader = LedgerReader::open(&path).unwrap();
    let before = reader.job(job.id).unwrap().unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    for (change, expected) in [
        ("UPDATE jobs SET round_version = 7", "has version 0 of the kind toy, and version 7 is needed"),
        ("UPDATE jobs SET round_version = 0, spec = '[1]'", "does not fit kind toy"),
    ] {
        connection.execute_batch(change).unwrap();
        let error = Sink::open(config(&path)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("does not start"), "{error}");
        let after = reader.job(job.id).unwrap().unwrap();
        assert_eq!(after.summary.state, before.summary.state, "the job was ended");
    }
}
