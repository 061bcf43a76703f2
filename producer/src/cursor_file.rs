//! The cursor of a job that is being sent.

use std::sync::Arc;

use gristmill_shared::wire::Sealed;

use crate::{Cursor, CursorDir, CursorError, ProducerError, cursor::CursorLock, splitter::SplitPosition};

/// A cursor and the directory that keeps it, if there is one. The cursor is locked meanwhile.
#[derive(Debug)]
pub(crate) struct CursorFile {
    pub(crate) cursor: Cursor,
    location: Option<(CursorDir, Arc<CursorLock>)>,
}

impl CursorFile {
    /// Locks a cursor for this producer. If it was read before, it may be out of date: then a few
    /// tasks are sent twice.
    ///
    /// # Errors
    /// [`CursorError::Held`] if another producer has it; otherwise if it cannot be locked.
    pub(crate) fn acquire(cursor: Cursor, dir: Option<CursorDir>) -> Result<Self, CursorError> {
        let location = dir.map(|dir| dir.lock(cursor.job).map(|lock| (dir, Arc::new(lock)))).transpose()?;
        Ok(Self { cursor, location })
    }

    /// Acquires a new job's cursor, saves it at once, and removes the oldest of the others.
    ///
    /// # Errors
    /// The errors of [`Self::acquire`], or if the cursor cannot be saved.
    pub(crate) async fn create(cursor: Cursor, dir: Option<CursorDir>) -> Result<Self, ProducerError> {
        let file = Self::acquire(cursor, dir)?;
        file.with_dir(|dir, cursor| dir.save(cursor).and_then(|()| dir.prune())).await?;
        Ok(file)
    }

    /// Returns the end of the prefix that is stored on the broker.
    pub(crate) fn position(&self) -> SplitPosition {
        SplitPosition { index: self.cursor.confirmed, digest: self.cursor.digest }
    }

    /// Saves that all tasks up to `position` are stored.
    pub(crate) async fn advance(&mut self, position: SplitPosition) -> Result<(), ProducerError> {
        (self.cursor.confirmed, self.cursor.digest) = (position.index, position.digest);
        self.save().await
    }

    /// Saves that the split is complete.
    pub(crate) async fn seal(
        &mut self,
        position: SplitPosition,
        sealed: Sealed,
    ) -> Result<(), ProducerError> {
        self.cursor.sealed = Some(sealed);
        self.advance(position).await
    }

    /// Releases the cursor to other producers. Later changes are not saved.
    pub(crate) fn release(&mut self) {
        self.location = None;
    }

    async fn save(&self) -> Result<(), ProducerError> {
        self.with_dir(CursorDir::save).await
    }

    /// Calls `act` on a blocking thread, since it waits for the disk. If the future is dropped,
    /// `act` runs on, and the lock is held until it returns: otherwise it might replace what
    /// another producer saves.
    async fn with_dir(
        &self,
        act: impl FnOnce(&CursorDir, &Cursor) -> Result<(), CursorError> + Send + 'static,
    ) -> Result<(), ProducerError> {
        let Some((dir, lock)) = self.location.clone() else { return Ok(()) };
        let cursor = self.cursor.clone();
        let act = move || {
            let done = act(&dir, &cursor);
            drop(lock);
            done
        };
        match tokio::task::spawn_blocking(act).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(ProducerError::ThreadDied),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, process::Command};

    use futures::FutureExt as _;
    use gristmill_shared::{JobId, Plan, Policy, Shards, SplitDigest, TaskIndex};
    use serde_json::value::RawValue;

    use super::*;

    fn cursor(job: JobId, code: &str) -> Cursor {
        Cursor {
            job,
            kind: "primes".parse().unwrap(),
            spec: RawValue::from_string("{}".into()).unwrap(),
            local: None,
            code: code.into(),
            version: 0,
            build: None,
            policy: Policy::default(),
            plan: Plan::unknown(),
            lane: "default".parse().unwrap(),
            shards: Shards::ONE,
            submitted_ms: 0,
            batch: None,
            confirmed: TaskIndex(0),
            digest: SplitDigest::default(),
            sealed: None,
        }
    }

    #[tokio::test]
    async fn create_keeps_held_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let (cursors, job) = (CursorDir::new(dir.path()), JobId::generate());
        let first = CursorFile::create(cursor(job, "1"), Some(cursors.clone())).await.unwrap();
        let second = CursorFile::create(cursor(job, "2"), Some(cursors.clone()));
        assert!(matches!(second.await, Err(ProducerError::Cursor(CursorError::Held { .. }))));
        assert_eq!(cursors.load(job).unwrap().code, "1");
        drop(first);
        CursorFile::create(cursor(job, "2"), Some(cursors.clone())).await.unwrap();
        assert_eq!(cursors.load(job).unwrap().code, "2");
    }

    /// A save that runs on after its future was dropped holds the lock until it is done.
    #[tokio::test]
    async fn dropped_save_keeps_lock() {
        let dir = tempfile::tempdir().unwrap();
        let job = JobId::generate();
        let cursor = cursor(job, "1");
        // A write to it blocks until it is read.
        let draft = dir.path().join(format!("{job}.draft"));
        assert!(Command::new("mkfifo").arg(&draft).status().unwrap().success());
        let cursors = CursorDir::new(dir.path());
        let mut file = CursorFile::acquire(cursor.clone(), Some(cursors.clone())).unwrap();
        let position = SplitPosition { index: TaskIndex(7), digest: SplitDigest::default() };
        assert!(file.advance(position).now_or_never().is_none(), "it is under way");
        drop(file);
        let acquire = || CursorFile::acquire(cursor.clone(), Some(cursors.clone()));
        let second = acquire();
        // Read before the assertions: a runtime that shuts down waits for the thread that writes.
        let text = tokio::task::spawn_blocking(move || {
            File::open(&draft).and_then(|mut file| std::io::read_to_string(&mut file)).unwrap()
        });
        assert!(text.await.unwrap().contains("\"confirmed\":7"), "it went on");
        assert!(matches!(second, Err(CursorError::Held { job: held }) if held == job));
        while acquire().is_err() {
            tokio::task::yield_now().await;
        }
    }
}
