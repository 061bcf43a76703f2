//! A process of the drill: its output, its signals and its end.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use gristmill_test_support::is_stopped;
use rustix::process::{Pid, Signal, WaitIdOptions, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child as Process, Command},
    sync::watch,
};

/// The sign that a process is up.
#[derive(Debug, Clone, Copy)]
pub(super) enum StartupSign {
    /// A line on stderr with these words.
    StderrLine(&'static str),
    /// Any line on stdout.
    StdoutLine,
}

/// The lines of a process that matter to the drill.
#[derive(Debug, Default)]
struct ProcessLines {
    /// The line that shows that it is up.
    startup_line: Option<String>,
    /// The last line on stderr.
    last_line: String,
}

/// A process that was started and not yet waited for. Dropping it kills it.
#[derive(Debug)]
pub(super) struct SupervisedProcess {
    process: Process,
    pid: Pid,
    lines: watch::Receiver<ProcessLines>,
}

/// The end of a process.
#[derive(Debug)]
pub(super) struct ProcessExit {
    pub(super) status: ExitStatus,
    /// Its last line on stderr.
    pub(super) last_line: String,
    /// True if it had been up.
    pub(super) was_up: bool,
}

impl ProcessExit {
    pub(super) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(super) fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }
}

impl SupervisedProcess {
    /// Starts a process; its output goes to `log` as well.
    pub(super) fn start(mut command: Command, sign: StartupSign, log: File) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("the process has no id"))?;
        let (sender, lines) = watch::channel(ProcessLines::default());
        let log = Arc::new(log);
        if let Some(stdout) = process.stdout.take() {
            tokio::spawn(read_lines(stdout, Arc::clone(&log), sender.clone(), move |lines, line| {
                if matches!(sign, StartupSign::StdoutLine) {
                    lines.startup_line = Some(line);
                }
            }));
        }
        if let Some(stderr) = process.stderr.take() {
            tokio::spawn(read_lines(stderr, log, sender, move |lines, line| {
                if matches!(sign, StartupSign::StderrLine(words) if line.contains(words)) {
                    lines.startup_line = Some(line.clone());
                }
                lines.last_line = line;
            }));
        }
        Ok(Self { process, pid, lines })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Returns the line that showed that it is up, if it is.
    pub(super) fn startup_line(&self) -> Option<String> {
        self.lines.borrow().startup_line.clone()
    }

    /// Waits until it is up. Never returns if it ends before that: wait for its end as well.
    pub(super) fn wait_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lines = self.lines.clone();
        async move {
            if lines.wait_for(|lines| lines.startup_line.is_some()).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits for its end. May be cancelled and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ProcessExit> {
        let status = self.process.wait().await?;
        while self.lines.changed().await.is_ok() {} // both readers have ended then
        let lines = self.lines.borrow();
        Ok(ProcessExit { status, last_line: lines.last_line.clone(), was_up: lines.startup_line.is_some() })
    }

    /// Sends a signal. The process id is still its own, since only this type waits for it.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Stops it by SIGSTOP. Returns true once the system reports it as stopped, and false if it has
    /// ended.
    pub(super) async fn freeze(&self) -> io::Result<bool> {
        self.signal(Signal::STOP)?;
        let pid = self.pid;
        let stopped = tokio::task::spawn_blocking(move || is_stopped(pid, WaitIdOptions::EXITED)).await;
        stopped.map_err(io::Error::other)?
    }

    /// True if it is stopped.
    pub(super) fn is_frozen(&self) -> io::Result<bool> {
        is_stopped(self.pid, WaitIdOptions::NOHANG)
    }
}

/// Copies lines to the log and to `record`, until there are no more.
async fn read_lines(
    from: impl AsyncRead + Unpin,
    log: Arc<File>,
    lines: watch::Sender<ProcessLines>,
    record: impl Fn(&mut ProcessLines, String),
) {
    let mut reader = BufReader::new(from).lines();
    while let Ok(Some(line)) = reader.next_line().await {
        let _ = writeln!(&*log, "{line}"); // a log that cannot be written must not keep the drill from going on
        lines.send_modify(|lines| record(lines, line));
    }
}
