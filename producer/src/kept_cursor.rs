//! A job's cursor while the job is being sent.

use gristmill_shared::wire::Sealed;

use crate::{Cursor, CursorDir, CursorError, ProducerError, cursor::CursorLock, splitting::Place};

/// A cursor, and where it is kept, if it is: then nobody else has it meanwhile.
#[derive(Debug)]
pub(crate) struct KeptCursor {
    pub(crate) cursor: Cursor,
    dir: Option<CursorDir>,
    _lock: Option<CursorLock>,
}

impl KeptCursor {
    /// Takes a cursor for this producer alone. It may have been read before that: then a little is sent twice.
    pub(crate) fn hold(cursor: Cursor, dir: Option<CursorDir>) -> Result<Self, CursorError> {
        let lock = dir.as_ref().map(|dir| dir.lock(cursor.job)).transpose()?;
        Ok(Self { cursor, dir, _lock: lock })
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

    /// Off the runtime's threads, since it waits for the disk.
    async fn save(&self) -> Result<(), ProducerError> {
        let Some(dir) = self.dir.clone() else { return Ok(()) };
        let cursor = self.cursor.clone();
        match tokio::task::spawn_blocking(move || dir.save(&cursor)).await {
            Ok(saved) => Ok(saved?),
            Err(_) => Err(ProducerError::Died),
        }
    }
}
