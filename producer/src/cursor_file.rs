//! A job's cursor while the job is being sent.

use std::sync::Arc;

use gristmill_shared::wire::Sealed;

use crate::{Cursor, CursorDir, CursorError, ProducerError, cursor::CursorLock, splitter::Place};

/// A cursor, and where it is kept, if it is: then nobody else has it meanwhile.
#[derive(Debug)]
pub(crate) struct KeptCursor {
    pub(crate) cursor: Cursor,
    kept: Option<(CursorDir, Arc<CursorLock>)>,
}

impl KeptCursor {
    /// Takes a cursor for this producer alone. It may have been read before that: then a little is sent twice.
    pub(crate) fn hold(cursor: Cursor, dir: Option<CursorDir>) -> Result<Self, CursorError> {
        let kept = dir.map(|dir| dir.lock(cursor.job).map(|lock| (dir, Arc::new(lock)))).transpose()?;
        Ok(Self { cursor, kept })
    }

    /// [`Self::hold`] of a new job's cursor, which is saved at once. The oldest of the others may go for it.
    pub(crate) async fn begin(cursor: Cursor, dir: Option<CursorDir>) -> Result<Self, ProducerError> {
        let kept = Self::hold(cursor, dir)?;
        kept.with_dir(|dir, cursor| dir.save(cursor).and_then(|()| dir.prune())).await?;
        Ok(kept)
    }

    /// Up to where everything is stored.
    pub(crate) fn place(&self) -> Place {
        Place { index: self.cursor.confirmed, digest: self.cursor.digest }
    }

    /// Everything up to `place` is stored.
    pub(crate) async fn advance(&mut self, place: Place) -> Result<(), ProducerError> {
        (self.cursor.confirmed, self.cursor.digest) = (place.index, place.digest);
        self.save().await
    }

    /// The split is complete.
    pub(crate) async fn seal(&mut self, place: Place, sealed: Sealed) -> Result<(), ProducerError> {
        self.cursor.sealed = Some(sealed);
        self.advance(place).await
    }

    /// Leaves the cursor to other producers, and saves it no more.
    pub(crate) fn let_go(&mut self) {
        self.kept = None;
    }

    async fn save(&self) -> Result<(), ProducerError> {
        self.with_dir(CursorDir::save).await
    }

    /// Off the runtime's threads, since it waits for the disk. Cancelled, it goes on, and nobody else has the cursor until it is
    /// through: else it might replace what they save.
    async fn with_dir(
        &self,
        act: impl FnOnce(&CursorDir, &Cursor) -> Result<(), CursorError> + Send + 'static,
    ) -> Result<(), ProducerError> {
        let Some((dir, lock)) = self.kept.clone() else { return Ok(()) };
        let cursor = self.cursor.clone();
        let act = move || {
            let done = act(&dir, &cursor);
            drop(lock);
            done
        };
        match tokio::task::spawn_blocking(act).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(ProducerError::Died),
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
    async fn a_new_job_replaces_no_cursor_that_somebody_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (cursors, job) = (CursorDir::new(dir.path()), JobId::generate());
        let first = KeptCursor::begin(cursor(job, "1"), Some(cursors.clone())).await.unwrap();
        let begin = KeptCursor::begin(cursor(job, "2"), Some(cursors.clone()));
        assert!(matches!(begin.await, Err(ProducerError::Cursor(CursorError::Held { .. }))));
        assert_eq!(cursors.load(job).unwrap().code, "1");
        drop(first);
        KeptCursor::begin(cursor(job, "2"), Some(cursors.clone())).await.unwrap();
        assert_eq!(cursors.load(job).unwrap().code, "2");
    }

    #[tokio::test]
    async fn nobody_else_has_a_cursor_while_it_is_saved_even_for_one_who_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let job = JobId::generate();
        let cursor = cursor(job, "1");
        // What is written there waits for one who reads it.
        let draft = dir.path().join(format!("{job}.draft"));
        assert!(Command::new("mkfifo").arg(&draft).status().unwrap().success());
        let cursors = CursorDir::new(dir.path());
        let mut kept = KeptCursor::hold(cursor.clone(), Some(cursors.clone())).unwrap();
        let place = Place { index: TaskIndex(7), digest: SplitDigest::default() };
        assert!(kept.advance(place).now_or_never().is_none(), "it is under way");
        drop(kept);
        let hold = || KeptCursor::hold(cursor.clone(), Some(cursors.clone()));
        let second = hold();
        // Before anything is asserted: a runtime that ends waits for the thread that writes there.
        let text = tokio::task::spawn_blocking(move || {
            File::open(&draft).and_then(|mut file| std::io::read_to_string(&mut file)).unwrap()
        });
        assert!(text.await.unwrap().contains("\"confirmed\":7"), "it went on");
        assert!(matches!(second, Err(CursorError::Held { job: held }) if held == job));
        while hold().is_err() {
            tokio::task::yield_now().await;
        }
    }
}
