//! Files that are ledgers, and files that are not.

use std::{fs, path::Path};

use gristmill_ledger::{Ledger, LedgerError, LedgerLocation};

use crate::{SqliteAccess, SqliteLedger};

fn open(path: &Path) -> Result<SqliteLedger, LedgerError> {
    SqliteLedger::open(LedgerLocation::File(path.into()))
}

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
    drop(open(&path("future")).unwrap());
    rusqlite::Connection::open(path("future")).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    let cases = [
        ("notes", "is not a ledger: it is no SQLite file (hint:"),
        ("folder", "is not a ledger: it is a directory"),
        ("notes/ledger", "is not a ledger: a part of its path is a file"),
        ("foreign", "is not a ledger: it is the SQLite database of another program"),
        ("torn", "is not a ledger: it is no SQLite file"),
        ("future", "has version 9, and this program reads version 4 only (hint:"),
    ];
    for (name, expected) in cases {
        let before = fs::read(path(name)).ok();
        for error in [open(&path(name)).unwrap_err(), SqliteAccess::open(&path(name)).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
        assert_eq!(fs::read(path(name)).ok(), before, "{name} was changed");
    }
    let error = SqliteAccess::open(&path("nowhere")).unwrap_err();
    assert!(matches!(error, LedgerError::Missing { .. }), "{error}");
    assert!(!path("nowhere").exists());
}

/// An empty file becomes a ledger with its own id.
#[test]
fn empty_file_becomes_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    fs::write(&paths[0], "").unwrap();
    let ids = paths.each_ref().map(|path| open(path).unwrap().id().clone());
    assert_ne!(ids[0], ids[1]);
    assert_eq!(*open(&paths[0]).unwrap().id(), ids[0]);
}
