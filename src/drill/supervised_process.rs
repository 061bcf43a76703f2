//! One process of the drill: what it says, how it is signalled, how it ends.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child as Process, Command},
    sync::watch,
};

/// How a process shows that it is up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    /// By a line on stderr with these words.
    Says(&'static str),
    /// By a line on stdout.
    Prints,
}

/// What a process has said.
#[derive(Debug, Default)]
struct Said {
    /// The line that shows that it is up.
    up: Option<String>,
    /// The last line on stderr.
    last: String,
}

/// A process that was started and not yet waited for. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    pid: Pid,
    said: watch::Receiver<Said>,
}

/// How a process ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// Its last line on stderr.
    pub(super) last: String,
    /// Whether it had been up.
    pub(super) was_up: bool,
}

impl Ended {
    pub(super) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(super) fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }
}

impl Child {
    /// Starts a process; what it says goes to `log` as well.
    pub(super) fn start(mut command: Command, mark: Mark, log: File) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("the process has no id"))?;
        let (sender, said) = watch::channel(Said::default());
        let log = Arc::new(log);
        if let Some(stdout) = process.stdout.take() {
            tokio::spawn(listen(stdout, Arc::clone(&log), sender.clone(), move |said, line| {
                if matches!(mark, Mark::Prints) {
                    said.up = Some(line);
                }
            }));
        }
        if let Some(stderr) = process.stderr.take() {
            tokio::spawn(listen(stderr, log, sender, move |said, line| {
                if matches!(mark, Mark::Says(words) if line.contains(words)) {
                    said.up = Some(line.clone());
                }
                said.last = line;
            }));
        }
        Ok(Self { process, pid, said })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// The line that showed that it is up, if it is.
    pub(super) fn up(&self) -> Option<String> {
        self.said.borrow().up.clone()
    }

    /// Waits until it is up. Never returns if it ends before that: wait for its end as well.
    pub(super) fn until_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut said = self.said.clone();
        async move {
            if said.wait_for(|said| said.up.is_some()).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits for its end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> io::Result<Ended> {
        let status = self.process.wait().await?;
        while self.said.changed().await.is_ok() {} // both listeners are at their ends then
        let said = self.said.borrow();
        Ok(Ended { status, last: said.last.clone(), was_up: said.up.is_some() })
    }

    /// Sends a signal. Its id is still its own, since nobody but us waits for it.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Freezes it and returns when it stands still, by the system's own word.
    pub(super) async fn freeze(&self) -> io::Result<bool> {
        self.signal(Signal::STOP)?;
        let pid = self.pid;
        let stopped = tokio::task::spawn_blocking(move || stands_still(pid, WaitIdOptions::EXITED)).await;
        stopped.map_err(io::Error::other)?
    }

    /// Whether it stands still.
    pub(super) fn is_frozen(&self) -> io::Result<bool> {
        stands_still(self.pid, WaitIdOptions::NOHANG)
    }
}

/// Asks the system whether a child of ours is stopped; takes nothing away from those who wait for its end.
pub(super) fn stands_still(pid: Pid, how: WaitIdOptions) -> io::Result<bool> {
    let news = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | how)?;
    Ok(news.is_some_and(|news| news.stopped()))
}

/// Writes down what is said, line by line, to the end.
async fn listen(
    from: impl AsyncRead + Unpin,
    log: Arc<File>,
    said: watch::Sender<Said>,
    heard: impl Fn(&mut Said, String),
) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(&*log, "{line}"); // a log that cannot be written must not keep the drill from going on
        said.send_modify(|said| heard(said, line));
    }
}
