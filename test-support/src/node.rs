//! A process of a RabbitMQ node.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::node_dir::NodeDir;

/// The text that a node prints once its listeners are open.
const READY_MARKER: &str = " completed with ";

/// The most bytes of a node's output that are kept. A node prints about 3 KiB.
const OUTPUT_MAX_BYTES: usize = 64 * 1024;

/// A node that was started and not yet waited for.
#[derive(Debug)]
pub(super) struct Node {
    child: Child,
    /// Its stdout and stderr. They report that it is ready; their end reports that it has ended.
    output: UnixStream,
    printed: String,
}

/// The reason why a wait for a node's output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeWaitOutcome {
    Ready,
    Exited,
    TimedOut,
}

impl Node {
    /// Starts the node in `node_dir`, as a member of the process group `group`.
    pub(super) fn spawn(server: &Path, node_dir: &NodeDir, group: i32) -> io::Result<Self> {
        let (output, theirs) = UnixStream::pair()?;
        let child = node_dir
            .command(server)
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(theirs.try_clone()?))
            .stderr(OwnedFd::from(theirs))
            .process_group(group)
            .spawn()?;
        Ok(Self { child, output, printed: String::new() })
    }

    /// Blocks until the node accepts connections, has ended, or `timeout` has passed.
    pub(super) fn wait_ready(&mut self, timeout: Duration) -> io::Result<NodeWaitOutcome> {
        let deadline = Instant::now() + timeout;
        loop {
            if self.printed.contains(READY_MARKER) {
                return Ok(NodeWaitOutcome::Ready);
            }
            if let Some(outcome) = self.read(deadline)? {
                return Ok(outcome);
            }
        }
    }

    /// Blocks until the node has ended, at most for `timeout`.
    fn wait_end(&mut self, timeout: Duration) -> io::Result<NodeWaitOutcome> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(outcome) = self.read(deadline)? {
                return Ok(outcome);
            }
        }
    }

    /// Reads the next output. Returns an outcome if there is nothing more to wait for.
    fn read(&mut self, deadline: Instant) -> io::Result<Option<NodeWaitOutcome>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Some(NodeWaitOutcome::TimedOut));
        }
        self.output.set_read_timeout(Some(left))?;
        let mut buffer = [0; 4096];
        match self.output.read(&mut buffer) {
            Ok(0) => return Ok(Some(NodeWaitOutcome::Exited)),
            Ok(length) if self.printed.len() < OUTPUT_MAX_BYTES => {
                self.printed.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Asks the node to shut down. Returns `TimedOut` if it still runs after `timeout`.
    pub(super) fn stop(&mut self, timeout: Duration) -> io::Result<NodeWaitOutcome> {
        self.signal(Signal::TERM)?;
        let outcome = self.wait_end(timeout)?;
        if outcome == NodeWaitOutcome::Exited {
            self.child.wait()?;
        }
        Ok(outcome)
    }

    /// Kills the node. Its sockets are closed when this returns; its data stays as it was.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Sends a signal. The node must not have been waited for.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.handle()?, signal)?)
    }

    /// Stops all of its threads. When this returns they stand still, or the node has ended.
    pub(super) fn freeze(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        is_stopped(self.handle()?, WaitIdOptions::EXITED).map(drop)
    }

    fn handle(&self) -> io::Result<Pid> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        pid.ok_or_else(|| io::Error::other("a process id that is none"))
    }

    /// Returns its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its output so far.
    pub(super) fn printed(&self) -> &str {
        &self.printed
    }

    /// Returns the version in its banner: the word after "RabbitMQ", which may be coloured.
    pub(super) fn version(&self) -> Option<&str> {
        let banner = self.printed.lines().find(|line| line.contains("RabbitMQ"))?;
        banner.split_whitespace().last().filter(|word| word.starts_with(|first: char| first.is_ascii_digit()))
    }
}

/// Asks the system whether a child of this process is stopped. Its exit status stays for the caller
/// that waits for its end. With `EXITED` blocks until it is stopped or has ended; with `NOHANG`
/// returns at once.
///
/// # Errors
/// If there is no such child.
pub fn is_stopped(child: Pid, how: WaitIdOptions) -> io::Result<bool> {
    let status = waitid(WaitId::Pid(child), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | how)?;
    Ok(status.is_some_and(|status| status.stopped()))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
