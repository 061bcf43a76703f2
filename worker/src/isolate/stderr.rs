//! The log of a child: passed on to this process's standard error, with its end kept for reasons.

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, task::JoinHandle, time::timeout};

/// Bytes that are kept for the reason of a failed task.
const TAIL_BYTES: usize = 4 << 10;

/// Bytes that wait for the end of their line before they are passed on without it.
const LINE_BYTES: usize = 8 << 10;

/// Time for which a dead child's log is read: a process that has left the child's group may hold it
/// open.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);

/// The log of a child. Dropping it passes on no more.
#[derive(Debug)]
pub(super) struct Stderr {
    tail: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl Stderr {
    /// Passes on the log of a child. Call it in a runtime.
    pub(super) fn pass_on(from: Receiver) -> Self {
        let tail = Arc::default();
        let reading = tokio::spawn(read(from, Arc::clone(&tail)));
        Self { tail, reading }
    }

    /// The end of the log, when the child has exited.
    pub(super) async fn end(&mut self) -> Vec<u8> {
        let _ = timeout(DRAIN_PATIENCE, &mut self.reading).await;
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn read(mut from: Receiver, tail: Arc<Mutex<Vec<u8>>>) {
    let mut lines = Vec::new();
    while let Ok(1..) = from.read_buf(&mut lines).await {
        let end = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let end = if lines.len() >= LINE_BYTES && end == 0 { lines.len() } else { end };
        keep(&tail, &lines[..end]);
        write(lines.drain(..end).collect()).await;
    }
    keep(&tail, &lines);
    write(lines).await;
}

fn keep(tail: &Mutex<Vec<u8>>, lines: &[u8]) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.extend_from_slice(lines);
    let extra = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..extra);
}

/// Writes on a thread that may block: a reader of the log that is slow holds up this child alone.
async fn write(lines: Vec<u8>) {
    if !lines.is_empty() {
        let written = tokio::task::spawn_blocking(move || io::stderr().write_all(&lines)).await;
        drop(written); // there is no other place for it
    }
}
