//! The log of a child: relayed to this process's standard error, with its end kept for failure
//! reasons.

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, task::JoinHandle, time::timeout};

/// Bytes kept for the reason of a failed task.
const TAIL_BYTES: usize = 4 << 10;

/// Bytes that wait for the end of their line before they are passed on without it.
const LINE_BYTES: usize = 8 << 10;

/// Time for which the log of a dead child is read: a process that has left the child's group may
/// hold it open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// A relay of a child's log. Dropping it ends the relay.
#[derive(Debug)]
pub(super) struct StderrRelay {
    tail: Arc<Mutex<Vec<u8>>>,
    relaying: JoinHandle<()>,
}

impl StderrRelay {
    /// Starts to relay the log of a child. Call it in a runtime.
    pub(super) fn start(from: Receiver) -> Self {
        let tail = Arc::default();
        let relaying = tokio::spawn(relay(from, Arc::clone(&tail)));
        Self { tail, relaying }
    }

    /// Returns the end of the log. Call it after the child has exited.
    pub(super) async fn read_tail(&mut self) -> Vec<u8> {
        let _ = timeout(DRAIN_TIMEOUT, &mut self.relaying).await;
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for StderrRelay {
    fn drop(&mut self) {
        self.relaying.abort();
    }
}

async fn relay(mut from: Receiver, tail: Arc<Mutex<Vec<u8>>>) {
    let mut lines = Vec::new();
    while let Ok(1..) = from.read_buf(&mut lines).await {
        let end = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let end = if lines.len() >= LINE_BYTES && end == 0 { lines.len() } else { end };
        keep_tail(&tail, &lines[..end]);
        write_lines(lines.drain(..end).collect()).await;
    }
    keep_tail(&tail, &lines);
    write_lines(lines).await;
}

fn keep_tail(tail: &Mutex<Vec<u8>>, lines: &[u8]) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.extend_from_slice(lines);
    let extra = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..extra);
}

/// Writes on a thread that may block, so that a slow reader of the log delays this child alone.
async fn write_lines(lines: Vec<u8>) {
    if !lines.is_empty() {
        let written = tokio::task::spawn_blocking(move || io::stderr().write_all(&lines)).await;
        drop(written); // there is no other place for it
    }
}
