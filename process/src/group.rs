//! A child process that leads a process group, and the termination of the whole group.

use std::{
    io,
    os::fd::OwnedFd,
    process::{Child, ExitStatus, Stdio},
    sync::LazyLock,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe::{Receiver, Sender},
    runtime::{Builder, Handle, Runtime},
    time::timeout,
};

use crate::{command::Command, leash};

/// The time between SIGTERM and SIGKILL. It fits into the time that a task has after its time
/// limit.
pub const KILL_DELAY: Duration = Duration::from_secs(1);

/// The longest wait for a group to die of SIGKILL, since it may hang in the kernel.
const REAP_PATIENCE: Duration = Duration::from_secs(1);

/// The runtime that watches child processes, and runs nothing else.
static CHILD_RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("commands").enable_all().build()
});

/// Returns the runtime that watches child processes: one thread, started at first use, never ended.
///
/// # Errors
/// If the operating system provided no thread or no descriptor at first use.
pub fn runtime() -> io::Result<&'static Handle> {
    match &*CHILD_RUNTIME {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(io::Error::new(error.kind(), format!("no runtime for child processes: {error}"))),
    }
}

/// A child process that leads a process group of its own. Dropping it ends the group: SIGTERM,
/// SIGKILL after [`KILL_DELAY`], and the leader is reaped in the background.
#[derive(Debug)]
pub struct ChildGroup {
    leader: Option<Leader>,
    streams: Option<Streams>,
}

/// The pipes of a child.
#[derive(Debug)]
pub struct Streams {
    /// Its standard input, if one was requested.
    pub stdin: Option<Sender>,
    /// Its standard output.
    pub stdout: Receiver,
    /// Its standard error.
    pub stderr: Receiver,
}

/// The first process of a group, not reaped yet.
#[derive(Debug)]
struct Leader {
    child: Child,
    group: Pid,
    /// Readable when the leader has exited.
    exit: AsyncFd<OwnedFd>,
}

impl ChildGroup {
    /// Starts the command, with an open standard input if `has_stdin`, else an empty one.
    ///
    /// # Errors
    /// If the program is not found or cannot be run, or if the operating system provides no process
    /// or descriptor.
    pub fn spawn(command: &Command, has_stdin: bool) -> io::Result<Self> {
        let _context = runtime()?.enter();
        leash::ensure()?;
        let stdin = if has_stdin { Stdio::piped() } else { Stdio::null() };
        let mut child = command.build(stdin)?.spawn()?;
        match Self::adopt(&mut child) {
            Ok((group, exit, streams)) => {
                Ok(Self { leader: Some(Leader { child, group, exit }), streams: Some(streams) })
            }
            Err(error) => {
                if let Some(group) = pid_of(&child) {
                    let _ = kill_process_group(group, Signal::KILL);
                    let _ = child.wait();
                    leash::remove(group);
                }
                Err(error)
            }
        }
    }

    fn adopt(child: &mut Child) -> io::Result<(Pid, AsyncFd<OwnedFd>, Streams)> {
        let group = pid_of(child).ok_or_else(|| io::Error::other("the child has no process id"))?;
        leash::add(group)?;
        let exit = pidfd_open(group, PidfdFlags::empty()).map_err(|error| {
            io::Error::new(error.kind(), format!("pidfd_open: {error} (hint: it needs Linux 5.3)"))
        })?;
        let exit = watch_exit(exit)?;
        let missing = || io::Error::other("the child has no pipe");
        let stdin = child.stdin.take().map(|pipe| Sender::from_owned_fd(pipe.into())).transpose()?;
        let stdout = Receiver::from_owned_fd(child.stdout.take().ok_or_else(missing)?.into())?;
        let stderr = Receiver::from_owned_fd(child.stderr.take().ok_or_else(missing)?.into())?;
        Ok((group, exit, Streams { stdin, stdout, stderr }))
    }

    /// Returns the process id of the leader, which is also the id of the group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.leader.as_ref().map_or(0, |leader| leader.child.id())
    }

    /// Returns the pipes of the child, at the first call only.
    pub fn take_streams(&mut self) -> Option<Streams> {
        self.streams.take()
    }

    /// Waits until the leader has exited, and does not reap it. Cancel safe.
    pub async fn exited(&self) {
        if let Some(leader) = &self.leader {
            leader.exited().await;
        }
    }

    /// Sends SIGTERM to the group and SIGKILL after [`KILL_DELAY`], and waits for the leader's
    /// exit. Returns early if it does not die of SIGKILL within a second. Cancel safe: dropping the
    /// group continues the termination.
    pub async fn terminate(&self) {
        if let Some(leader) = &self.leader {
            leader.terminate().await;
        }
    }

    /// Kills the rest of the group, and reaps the leader if it has exited. Otherwise it is reaped
    /// in the background.
    ///
    /// # Errors
    /// If the leader has not exited, or the operating system does not return its status.
    pub fn finish(mut self) -> io::Result<ExitStatus> {
        match self.leader.take() {
            Some(leader) if leader.has_exited() => leader.reap(),
            leader => {
                self.leader = leader;
                Err(io::Error::new(io::ErrorKind::TimedOut, "the process does not die of SIGKILL"))
            }
        }
    }
}

impl Drop for ChildGroup {
    fn drop(&mut self) {
        let Some(leader) = self.leader.take() else { return };
        let Ok(runtime) = runtime() else { return };
        runtime.spawn(async move {
            leader.terminate().await;
            leader.exited().await;
            let _ = leader.reap(); // its status is not needed
        });
    }
}

impl Leader {
    async fn exited(&self) {
        // The descriptor stays readable. An error means that the runtime has ended, which never
        // happens.
        let _ = self.exit.readable().await;
    }

    fn has_exited(&self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.group), options).is_ok_and(|status| status.is_some())
    }

    /// Sends a signal to the group. The leader is not reaped, so the number is still this group's.
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.group, signal); // an ended group needs none
    }

    async fn terminate(&self) {
        self.signal(Signal::TERM);
        if timeout(KILL_DELAY, self.exited()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = timeout(REAP_PATIENCE, self.exited()).await;
        }
    }

    /// Kills the rest of the group and reaps the leader, in this order: the group's number may be
    /// reused as soon as the leader is reaped.
    fn reap(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        leash::remove(self.group);
        self.child.wait()
    }
}

#[expect(
    deprecated,
    reason = "the replacement is unsafe for descriptors that may be closed; an OwnedFd is not"
)]
fn watch_exit(exit: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(exit, Interest::READABLE)
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().cast_signed())
}
