//! One run of a RabbitMQ node, as a child process.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::node_dir::Place;

/// What a node prints when its listeners are open.
const READY: &str = " completed with ";

/// How much of a node's output is kept in memory, in bytes; it prints about 3 KiB.
const OUTPUT_KEPT: usize = 64 * 1024;

/// A node that was started and not yet waited for.
#[derive(Debug)]
pub(super) struct Node {
    child: Child,
    /// Its stdout and stderr: they say when it is ready, and their end says that it is gone.
    output: UnixStream,
    printed: String,
}

/// Why a wait for a node's output came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woke {
    Ready,
    Ended,
    Late,
}

impl Node {
    /// Starts the node in `place`, as a member of the process group `group`.
    pub(super) fn spawn(server: &Path, place: &Place, group: i32) -> io::Result<Self> {
        let (output, theirs) = UnixStream::pair()?;
        let child = place
            .command(server)
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(theirs.try_clone()?))
            .stderr(OwnedFd::from(theirs))
            .process_group(group)
            .spawn()?;
        Ok(Self { child, output, printed: String::new() })
    }

    /// Blocks until the node takes connections, or has ended, or `bound` has passed.
    pub(super) fn wait_ready(&mut self, bound: Duration) -> io::Result<Woke> {
        let deadline = Instant::now() + bound;
        loop {
            if self.printed.contains(READY) {
                return Ok(Woke::Ready);
            }
            if let Some(woke) = self.read(deadline)? {
                return Ok(woke);
            }
        }
    }

    /// Blocks until the node has ended, at most for `bound`.
    fn wait_end(&mut self, bound: Duration) -> io::Result<Woke> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(woke) = self.read(deadline)? {
                return Ok(woke);
            }
        }
    }

    /// Takes in what the node prints next; says so if there is nothing more to wait for.
    fn read(&mut self, deadline: Instant) -> io::Result<Option<Woke>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Some(Woke::Late));
        }
        self.output.set_read_timeout(Some(left))?;
        let mut buffer = [0; 4096];
        match self.output.read(&mut buffer) {
            Ok(0) => return Ok(Some(Woke::Ended)),
            Ok(length) if self.printed.len() < OUTPUT_KEPT => {
                self.printed.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            Ok(_) => {}
            Err(error) if is_lateness(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Asks the node to end in order. `Late` if it still runs after `bound`.
    pub(super) fn stop(&mut self, bound: Duration) -> io::Result<Woke> {
        self.signal("TERM")?;
        let woke = self.wait_end(bound)?;
        if woke == Woke::Ended {
            self.child.wait()?;
        }
        Ok(woke)
    }

    /// Ends the node at once. Its sockets are closed when this returns; its data is as it was.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Sends a signal by the shell, as our own code is free of `unsafe`. The node can't have been waited for.
    pub(super) fn signal(&self, name: &str) -> io::Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid]).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("kill -s {name} {pid}: {status}")))
        }
    }

    /// Stops all of its threads; they stand still when this returns, or the node has ended.
    pub(super) fn freeze(&self) -> io::Result<()> {
        self.signal("STOP")?;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process id that is none"))?;
        let how = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), how)?;
        Ok(())
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(super) fn printed(&self) -> &str {
        &self.printed
    }

    /// The version in its banner: the word after "RabbitMQ", which may be coloured.
    pub(super) fn version(&self) -> Option<&str> {
        let banner = self.printed.lines().find(|line| line.contains("RabbitMQ"))?;
        banner.split_whitespace().last().filter(|word| word.starts_with(|first: char| first.is_ascii_digit()))
    }
}

fn is_lateness(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
