//! Where a ledger is, and whether it may be opened there.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::SinkError;

/// Where a ledger is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LedgerPlace {
    /// In a file, which is made if it does not exist, with the folders it is in.
    File(PathBuf),
    /// Nowhere: it goes when the process ends.
    Memory,
}

impl fmt::Display for LedgerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Memory => f.write_str("(in memory)"),
        }
    }
}

/// What every SQLite file begins with.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// What a lock file may say of its holder; the rest is not read.
const HOLDER_MAX_BYTES: u64 = 200;

/// Looks before anything is made or changed: the file is a database, or empty, or not there yet.
pub(super) fn inspect(path: &Path) -> Result<(), SinkError> {
    let not = |why: &str| SinkError::NotALedger { path: path.into(), why: why.into() };
    let access = |source| SinkError::Access { path: path.into(), doing: "read", source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Err(not("it is a link to a file that is not there")),
            Err(_) => Err(SinkError::Missing { path: path.into() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(not("a part of its path is a file"))
        }
        Err(error) => Err(access(error)),
        Ok(meta) if meta.is_dir() => Err(not("it is a directory")),
        Ok(meta) if !meta.is_file() => Err(not("it is no ordinary file")),
        Ok(_) => {
            let mut start = Vec::new();
            let file = File::open(path).map_err(access)?;
            file.take(SQLITE_MAGIC.len() as u64).read_to_end(&mut start).map_err(access)?;
            if start.is_empty() || start == SQLITE_MAGIC { Ok(()) } else { Err(not("it is no SQLite file")) }
        }
    }
}

/// The one name of a file that has been looked at, or is to be made, whatever links lead there. Makes the folders it is
/// in.
pub(super) fn real(path: &Path) -> Result<PathBuf, SinkError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let access = |doing| move |source| SinkError::Access { path: folder.into(), doing, source };
    fs::create_dir_all(folder).map_err(access("make the folder"))?;
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = fs::canonicalize(folder).map_err(access("find the folder"))?;
            Ok(folder.join(path.file_name().unwrap_or_default())) // a path without a name is a folder
        }
        real => real.map_err(|source| SinkError::Access { path: path.into(), doing: "find", source }),
    }
}

/// The right to write a ledger; it ends with the process, however that ends.
#[derive(Debug)]
pub(super) struct LedgerLock {
    _file: File,
}

impl LedgerLock {
    /// Makes sure that the file with that [real] name can be written here, by nobody else. The lock is a file beside
    /// it, `NAME.lock`, since SQLite has its own ideas about locks on the database.
    pub(super) fn take(path: &Path) -> Result<Self, SinkError> {
        let read_only = |what: &Path, why: &str| SinkError::ReadOnly {
            path: path.into(),
            why: format!("{} {why}", what.display()),
        };
        // The superuser may write what is marked as read-only; the mark was meant, all the same.
        for what in path.parent().into_iter().chain([path]) {
            if fs::metadata(what).is_ok_and(|meta| meta.permissions().readonly()) {
                return Err(read_only(what, "is read-only"));
            }
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let mut options = File::options();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&lock);
        let mut file = opened.map_err(|error| read_only(&lock, &format!("cannot be made: {error}")))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(HOLDER_MAX_BYTES).read_to_string(&mut holder); // only for the message
                return Err(SinkError::Held { path: path.into(), holder: holder.trim().into() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(SinkError::Access { path: lock, doing: "lock", source });
            }
        }
        let noted = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "process {}", std::process::id()));
        noted.map_err(|source| SinkError::Access { path: lock, doing: "write", source })?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn one_lock_at_a_time_and_it_says_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = real(&dir.path().join("not/yet/ledger")).unwrap();
        let held = LedgerLock::take(&path).unwrap();
        let error = LedgerLock::take(&path).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        LedgerLock::take(&path).unwrap();
    }

    #[test]
    fn what_is_marked_read_only_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        fs::write(&path, "").unwrap();
        mark(&path, true);
        let error = LedgerLock::take(&path).unwrap_err();
        assert!(
            matches!(&error, SinkError::ReadOnly { why, .. } if why.ends_with("ledger is read-only")),
            "{error}"
        );
        mark(&path, false);
        mark(dir.path(), true);
        let error = LedgerLock::take(&path).unwrap_err();
        mark(dir.path(), false);
        assert!(matches!(error, SinkError::ReadOnly { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
    }

    #[cfg(unix)]
    #[test]
    fn a_ledger_has_one_lock_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("ledger"), dir.path().join("link"));
        let other_folder = dir.path().join("folder");
        std::os::unix::fs::symlink(dir.path(), &other_folder).unwrap();
        std::os::unix::fs::symlink("ledger", &link).unwrap();
        let open = |path: &Path| Ledger::open(LedgerPlace::File(path.into()));
        let error = open(&link).unwrap_err();
        assert!(error.to_string().contains("a link to a file that is not there"), "{error}");
        let held = open(&path).unwrap();
        for name in [&link, &other_folder.join("ledger"), &other_folder.join("link")] {
            let error = open(name).unwrap_err();
            assert!(matches!(error, SinkError::Held { .. }), "{}: {error}", name.display());
        }
        drop(held);
        open(&link).unwrap();
    }

    fn mark(path: &Path, read_only: bool) {
        let mut permissions = fs::metadata(path).unwrap().permissions();
        permissions.set_readonly(read_only);
        fs::set_permissions(path, permissions).unwrap();
    }
}
