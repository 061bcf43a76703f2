//! The checks before a ledger file is opened, and its lock.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use gristmill_ledger::LedgerError;

/// The first bytes of every SQLite file.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// Bytes read from a lock file about its holder.
const HOLDER_MAX_BYTES: u64 = 200;

/// Checks, before anything is created or changed, that the file is a database, is empty, or does
/// not exist.
pub(crate) fn check_file(path: &Path) -> Result<(), LedgerError> {
    let not = |why: &str| LedgerError::NotALedger { path: path.into(), why: why.into() };
    let access = |source| LedgerError::Access { path: path.into(), doing: "read", source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Err(not("it is a link to a file that is not there")),
            Err(_) => Err(LedgerError::Missing { path: path.into() }),
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

/// Returns the canonical name of a checked or new file, following all links. Creates its folders.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, LedgerError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let access = |doing| move |source| LedgerError::Access { path: folder.into(), doing, source };
    fs::create_dir_all(folder).map_err(access("make the folder"))?;
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = fs::canonicalize(folder).map_err(access("find the folder"))?;
            Ok(folder.join(path.file_name().unwrap_or_default())) // a path without a name is a folder
        }
        real => real.map_err(|source| LedgerError::Access { path: path.into(), doing: "find", source }),
    }
}

/// The exclusive right to write a ledger; the operating system releases it when the process ends.
#[derive(Debug)]
pub(crate) struct LedgerLock {
    _file: File,
}

impl LedgerLock {
    /// Checks that the file with this [resolved](resolve) name is writable, and locks it. The lock
    /// is a file beside it, `NAME.lock`, since SQLite locks the database in its own way.
    pub(crate) fn acquire(path: &Path) -> Result<Self, LedgerError> {
        let read_only = |what: &Path, why: &str| LedgerError::ReadOnly {
            path: path.into(),
            why: format!("{} {why}", what.display()),
        };
        // The superuser can write read-only files; respect the mark nevertheless.
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
                return Err(LedgerError::Locked { path: path.into(), holder: holder.trim().into() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(LedgerError::Access { path: lock, doing: "lock", source });
            }
        }
        let noted = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "process {}", std::process::id()));
        noted.map_err(|source| LedgerError::Access { path: lock, doing: "write", source })?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use gristmill_ledger::LedgerLocation;

    use super::*;
    use crate::SqliteLedger;

    #[test]
    fn lock_is_exclusive_and_names_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = resolve(&dir.path().join("not/yet/ledger")).unwrap();
        let held = LedgerLock::acquire(&path).unwrap();
        let error = LedgerLock::acquire(&path).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        LedgerLock::acquire(&path).unwrap();
    }

    #[test]
    fn read_only_path_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        fs::write(&path, "").unwrap();
        mark(&path, true);
        let error = LedgerLock::acquire(&path).unwrap_err();
        assert!(
            matches!(&error, LedgerError::ReadOnly { why, .. } if why.ends_with("ledger is read-only")),
            "{error}"
        );
        mark(&path, false);
        mark(dir.path(), true);
        let error = LedgerLock::acquire(&path).unwrap_err();
        mark(dir.path(), false);
        assert!(matches!(error, LedgerError::ReadOnly { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
    }

    #[cfg(unix)]
    #[test]
    fn links_share_one_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("ledger"), dir.path().join("link"));
        let other_folder = dir.path().join("folder");
        std::os::unix::fs::symlink(dir.path(), &other_folder).unwrap();
        std::os::unix::fs::symlink("ledger", &link).unwrap();
        let open = |path: &Path| SqliteLedger::open(LedgerLocation::File(path.into()));
        let error = open(&link).unwrap_err();
        assert!(error.to_string().contains("a link to a file that is not there"), "{error}");
        let held = open(&path).unwrap();
        for name in [&link, &other_folder.join("ledger"), &other_folder.join("link")] {
            let error = open(name).unwrap_err();
            assert!(matches!(error, LedgerError::Locked { .. }), "{}: {error}", name.display());
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
