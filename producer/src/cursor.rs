//! The cursor, which records how far a job has been sent. A crash costs at most the last second.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use gristmill_shared::{
    BuildId, JobId, Kind, Lane, Plan, Policy, Shards, SplitDigest, TaskIndex,
    wire::{Opened, Sealed},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The number of cursors that a directory keeps; the oldest are removed first.
pub const CURSORS_KEPT: usize = 1_000;

/// A record of how far a job has been sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cursor {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// Its parameters.
    pub spec: Box<RawValue>,
    /// The values of [`Job::local`](gristmill_shared::Job::local), which do not leave this machine;
    /// at most [`LOCAL_INPUT_MAX_BYTES`](gristmill_shared::LOCAL_INPUT_MAX_BYTES).
    #[serde(default, deserialize_with = "present_value", skip_serializing_if = "Option::is_none")]
    pub local: Option<Box<RawValue>>,
    /// The version of the program that splits.
    pub code: String,
    /// The [version](gristmill_shared::Job::VERSION) of the job's code.
    #[serde(default)]
    pub version: u32,
    /// The build of the program that submitted the job, if that is known.
    #[serde(default)]
    pub build: Option<BuildId>,
    /// The policy for tasks that fail.
    pub policy: Policy,
    /// The job's plan.
    pub plan: Plan,
    /// The lane that takes its tasks.
    pub lane: Lane,
    /// The number of the lane's shards that take its tasks.
    #[serde(default)]
    pub shards: Shards,
    /// The time of its submission, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// The number of tasks of a batch, if it is fixed.
    #[serde(default)]
    pub batch: Option<u32>,
    /// The end of the prefix that is stored on the broker: all tasks before this index.
    pub confirmed: TaskIndex,
    /// The digest of those tasks.
    pub digest: SplitDigest,
    /// The seal, once the split is complete.
    pub sealed: Option<Sealed>,
}

/// Reads a value that is there, also if it is `null`.
fn present_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl Cursor {
    /// Returns the message that opens the job at the sink.
    pub(crate) fn opened(&self) -> Opened {
        let Self { job, kind, spec, policy, plan, lane, submitted_ms, version, build, .. } = self.clone();
        Opened { job, kind, spec, policy, plan, lane, submitted_ms, version, build }
    }
}

/// A directory of cursors, one file per job.
#[derive(Debug, Clone)]
pub struct CursorDir(PathBuf);

impl CursorDir {
    /// Uses this directory, which is created when the first cursor is saved.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Reads the cursor of a job.
    ///
    /// # Errors
    /// [`CursorError::NotFound`] if there is none here; otherwise if it cannot be read.
    pub fn load(&self, job: JobId) -> Result<Cursor, CursorError> {
        let path = self.file(job);
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CursorError::NotFound { job, dir: self.0.clone() },
            _ => CursorError::Io { path: path.clone(), source },
        })?;
        serde_json::from_slice(&text).map_err(|source| CursorError::Unreadable { path, source })
    }

    /// Replaces a job's cursor atomically: after a crash the old one or the new one is there.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// If the directory or the file cannot be written.
    pub fn save(&self, cursor: &Cursor) -> Result<(), CursorError> {
        let path = self.file(cursor.job);
        let text = serde_json::to_vec(cursor)
            .map_err(|source| CursorError::Unreadable { path: path.clone(), source })?;
        self.replace(&path, &text).map_err(|source| CursorError::Io { path, source })
    }

    /// Locks a job's cursor for this process until the lock is dropped or the process ends in any
    /// way.
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
                        // Another process that prunes may be faster.
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

/// The exclusive right to send a job and to save its cursor.
#[derive(Debug)]
pub(crate) struct CursorLock(
    #[expect(dead_code, reason = "the lock lasts as long as the file is open")] fs::File,
);

/// An error while a cursor is read or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// The cursor does not exist.
    #[error(
        "no job {job} was submitted from {dir} (hint: resume it where it was submitted, or pass --state)",
        dir = .dir.display()
    )]
    NotFound {
        /// The job.
        job: JobId,
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// Another producer holds the cursor.
    #[error(
        "another producer is sending job {job} (hint: wait for the job with `producer wait {job}`, or stop that \
         producer first)"
    )]
    Held {
        /// The job.
        job: JobId,
    },
    /// The file system refused access.
    #[error("cannot use the cursor {path}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file is no cursor of this version.
    #[error("{path} is no cursor of this version", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the decoder.
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
            local: None,
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

    /// Cursors of jobs without local input have the same bytes as ever.
    #[test]
    fn local_input_is_written_if_there() {
        let job = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let golden = r#"{"job":"01890a5d-ac96-774b-bcce-b302099a8057","kind":"primes","spec":{},"code":"1","version":0,"build":null,"policy":{"max_attempts":5},"plan":{"tasks":null,"unit":"tasks"},"lane":"default","shards":1,"submitted_ms":0,"batch":null,"confirmed":7,"digest":0,"sealed":null}"#;
        let json = |cursor: &Cursor| serde_json::to_string(cursor).unwrap();
        assert_eq!(json(&cursor(job)), golden);
        assert!(serde_json::from_str::<Cursor>(golden).unwrap().local.is_none());
        let local = Some(RawValue::from_string(r#"["a/b",7]"#.into()).unwrap());
        let with_local = json(&Cursor { local, ..cursor(job) });
        assert_eq!(with_local, golden.replace(r#""spec":{},"#, r#""spec":{},"local":["a/b",7],"#));
        let read: Cursor = serde_json::from_str(&with_local).unwrap();
        assert_eq!(read.local.unwrap().get(), r#"["a/b",7]"#);
    }

    #[test]
    fn saved_cursor_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let cursors = CursorDir::new(dir.path().join("jobs"));
        let job = JobId::generate();
        assert!(matches!(cursors.load(job), Err(CursorError::NotFound { .. })));
        cursors.save(&cursor(job)).unwrap();
        cursors.save(&Cursor { confirmed: TaskIndex(9), ..cursor(job) }).unwrap();
        assert_eq!(cursors.load(job).unwrap().confirmed, TaskIndex(9));
        fs::write(cursors.file(job), "{").unwrap();
        assert!(matches!(cursors.load(job), Err(CursorError::Unreadable { .. })));
    }

    #[test]
    fn cursor_lock_is_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let (cursors, job) = (CursorDir::new(dir.path().join("jobs")), JobId::generate());
        let lock = cursors.lock(job).unwrap();
        assert!(matches!(cursors.lock(job), Err(CursorError::Held { job: held }) if held == job));
        assert!(cursors.lock(JobId::generate()).is_ok());
        drop(lock);
        assert!(cursors.lock(job).is_ok());
    }

    #[test]
    fn prune_removes_oldest_cursors() {
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
