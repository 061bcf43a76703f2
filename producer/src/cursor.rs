//! The producer's own memory: how far a job has been sent, so that a crash costs no more than the last second.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use gristmill_shared::{
    BuildId, JobId, Kind, Lane, Plan, Policy, Shards, SplitDigest, TaskIndex,
    wire::{Opened, Sealed},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How many cursors a directory keeps; the oldest are removed first.
pub const CURSORS_KEPT: usize = 1_000;

/// How far a job has been sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cursor {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// Its parameters.
    pub spec: Box<RawValue>,
    /// The version of the program that splits.
    pub code: String,
    /// The [version](gristmill_shared::Job::VERSION) of the job's code.
    #[serde(default)]
    pub version: u32,
    /// The build of the program that submitted the job, if that is known.
    #[serde(default)]
    pub build: Option<BuildId>,
    /// How its tasks are treated when they fail.
    pub policy: Policy,
    /// What it said before it started.
    pub plan: Plan,
    /// Where its tasks are sent to.
    pub lane: Lane,
    /// Over how many of the lane's shards.
    #[serde(default)]
    pub shards: Shards,
    /// When it was submitted, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// How many tasks a batch has, if that is fixed.
    #[serde(default)]
    pub batch: Option<u32>,
    /// All tasks before this one are stored on the broker.
    pub confirmed: TaskIndex,
    /// The digest of those tasks.
    pub digest: SplitDigest,
    /// The seal, once the split is complete.
    pub sealed: Option<Sealed>,
}

impl Cursor {
    /// The job as the sink is told of it.
    pub(crate) fn opened(&self) -> Opened {
        let Self { job, kind, spec, policy, plan, lane, submitted_ms, version, build, .. } = self.clone();
        Opened { job, kind, spec, policy, plan, lane, submitted_ms, version, build }
    }
}

/// A directory of cursors, one file per job.
#[derive(Debug, Clone)]
pub struct CursorDir(PathBuf);

impl CursorDir {
    /// Takes a directory, which is made when the first cursor is saved.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The cursor of a job.
    ///
    /// # Errors
    /// If there is none here, or it cannot be read.
    pub fn load(&self, job: JobId) -> Result<Cursor, CursorError> {
        let path = self.file(job);
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CursorError::None { job, dir: self.0.clone() },
            _ => CursorError::Io { path: path.clone(), source },
        })?;
        serde_json::from_slice(&text).map_err(|source| CursorError::Unreadable { path, source })
    }

    /// Replaces a job's cursor, so that after a crash there is the old one or the new one. Blocks on the disk.
    ///
    /// # Errors
    /// If the directory or the file cannot be written.
    pub fn save(&self, cursor: &Cursor) -> Result<(), CursorError> {
        let path = self.file(cursor.job);
        let text = serde_json::to_vec(cursor)
            .map_err(|source| CursorError::Unreadable { path: path.clone(), source })?;
        self.replace(&path, &text).map_err(|source| CursorError::Io { path, source })
    }

    /// Takes a job's cursor for this process, until the lock is dropped or the process ends, however it does.
    ///
    /// # Errors
    /// [`CursorError::Held`] if another process has it.
    pub(crate) fn lock(&self, job: JobId) -> Result<CursorLock, CursorError> {
        let path = self.file(job).with_extension("lock");
        let lock = || -> io::Result<fs::File> {
            fs::create_dir_all(&self.0)?;
            let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.try_lock()?;
            Ok(file)
        };
        lock().map(CursorLock).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => CursorError::Held { job },
            _ => CursorError::Io { path: path.clone(), source },
        })
    }

    /// Removes all but the newest [`CURSORS_KEPT`] cursors.
    ///
    /// # Errors
    /// If the directory cannot be read or a file cannot be removed.
    pub fn prune(&self) -> Result<(), CursorError> {
        let prune = || -> io::Result<()> {
            let mut jobs: Vec<JobId> = fs::read_dir(&self.0)?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
                .collect();
            jobs.sort_unstable();
            for job in &jobs[..jobs.len().saturating_sub(CURSORS_KEPT)] {
                let file = self.file(*job);
                for file in [file.with_extension("draft"), file.with_extension("lock"), file] {
                    match fs::remove_file(file) {
                        // Somebody else who prunes was faster.
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
            Ok(())
        };
        prune().map_err(|source| CursorError::Io { path: self.0.clone(), source })
    }

    fn file(&self, job: JobId) -> PathBuf {
        self.0.join(format!("{job}.json"))
    }

    fn replace(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let draft = path.with_extension("draft");
        let mut file = fs::File::create(&draft)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(draft, path)
    }
}

/// The right to send a job and to save its cursor.
#[derive(Debug)]
pub(crate) struct CursorLock(
    #[expect(dead_code, reason = "the lock lasts as long as the file is open")] fs::File,
);

/// A cursor that cannot be read or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// There is no such cursor.
    #[error(
        "no job {job} was submitted from {dir} (hint: resume it where it was submitted, or pass --state)",
        dir = .dir.display()
    )]
    None {
        /// The job.
        job: JobId,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Another producer has it.
    #[error(
        "another producer is sending job {job} right now (hint: let it, wait for the job with `producer wait {job}`, or \
         stop that one first)"
    )]
    Held {
        /// The job.
        job: JobId,
    },
    /// The file system does not let us.
    #[error("cannot use the cursor {path}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// It is no cursor.
    #[error("{path} is no cursor of this version", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(job: JobId) -> Cursor {
        Cursor {
            job,
            kind: "primes".parse().unwrap(),
            spec: RawValue::from_string("{}".into()).unwrap(),
            code: "1".into(),
            version: 0,
            build: None,
            policy: Policy::default(),
            plan: Plan::unknown(),
            lane: Lane::default(),
            shards: Shards::ONE,
            submitted_ms: 0,
            batch: None,
            confirmed: TaskIndex(7),
            digest: SplitDigest::default(),
            sealed: None,
        }
    }

    #[test]
    fn a_saved_cursor_comes_back_and_a_missing_one_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let cursors = CursorDir::new(dir.path().join("jobs"));
        let job = JobId::generate();
        assert!(matches!(cursors.load(job), Err(CursorError::None { .. })));
        cursors.save(&cursor(job)).unwrap();
        cursors.save(&Cursor { confirmed: TaskIndex(9), ..cursor(job) }).unwrap();
        assert_eq!(cursors.load(job).unwrap().confirmed, TaskIndex(9));
        fs::write(cursors.file(job), "{").unwrap();
        assert!(matches!(cursors.load(job), Err(CursorError::Unreadable { .. })));
    }

    #[test]
    fn a_cursor_is_held_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (cursors, job) = (CursorDir::new(dir.path().join("jobs")), JobId::generate());
        let lock = cursors.lock(job).unwrap();
        assert!(matches!(cursors.lock(job), Err(CursorError::Held { job: held }) if held == job));
        assert!(cursors.lock(JobId::generate()).is_ok());
        drop(lock);
        assert!(cursors.lock(job).is_ok());
    }

    #[test]
    fn the_oldest_cursors_go() {
        let dir = tempfile::tempdir().unwrap();
        let cursors = CursorDir::new(dir.path());
        let jobs: Vec<_> = (0..CURSORS_KEPT + 2).map(|_| JobId::generate()).collect();
        for job in &jobs {
            fs::write(cursors.file(*job), "{}").unwrap();
        }
        cursors.prune().unwrap();
        let gone: Vec<_> = jobs.iter().filter(|job| !cursors.file(**job).exists()).collect();
        assert_eq!(gone, jobs[..2].iter().collect::<Vec<_>>());
    }
}
