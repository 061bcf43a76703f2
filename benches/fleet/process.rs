//! A process of the benchmark: its output, its resource usage, its end.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    sync::watch,
    time::timeout,
};

use crate::{BenchResult, usage};

/// The time limit of each step. It is generous: the longest job takes a few minutes.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(600);
/// The number of a process's last lines on stderr that an error shows.
const LINES_MAX: usize = 30;

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct BenchProcess {
    name: String,
    pid: u32,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr_lines: watch::Receiver<VecDeque<String>>,
}

/// The end of a process.
#[derive(Debug)]
pub(crate) struct ProcessEnd {
    /// Its exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    /// Its processor time in seconds, from its start to its end.
    pub(crate) seconds: f64,
}

impl BenchProcess {
    /// Starts a process.
    pub(crate) fn start(name: &str, mut command: Command) -> BenchResult<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let pid = child.id().ok_or("a process without an id")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let (sender, stderr_lines) = watch::channel(VecDeque::new());
        tokio::spawn(keep_last_lines(child.stderr.take().ok_or("no stderr")?, sender));
        Ok(Self { name: name.into(), pid, child, stdout: BufReader::new(stdout).lines(), stderr_lines })
    }

    /// Returns the process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until a line on stderr contains these words.
    pub(crate) async fn wait_for_stderr(&mut self, words: &str) -> BenchResult<()> {
        let has = |lines: &VecDeque<String>| lines.iter().any(|line| line.contains(words));
        let found = timeout(STEP_TIMEOUT, self.stderr_lines.wait_for(has)).await;
        let found = found.is_ok_and(|lines| lines.is_ok());
        if found { Ok(()) } else { Err(self.failure_text(&format!("did not log {words:?}")).into()) }
    }

    /// Returns its next line on stdout.
    pub(crate) async fn next_line(&mut self) -> BenchResult<String> {
        let line = timeout(STEP_TIMEOUT, self.stdout.next_line()).await.ok().and_then(Result::ok).flatten();
        line.ok_or_else(|| self.failure_text("printed no further line").into())
    }

    /// Reads a JSON value from stdout, on one line or several.
    pub(crate) async fn read_json<T: DeserializeOwned>(&mut self) -> BenchResult<T> {
        let mut json = String::new();
        loop {
            json += &self.next_line().await?;
            match serde_json::from_str(&json) {
                Err(error) if error.is_eof() => {}
                read => return Ok(read?),
            }
        }
    }

    /// Writes the line to stdin that the process waits for.
    pub(crate) async fn send_go(&mut self) -> BenchResult<()> {
        let stdin = self.child.stdin.as_mut().ok_or("no stdin")?;
        Ok(stdin.write_all(b"go\n").await?)
    }

    /// Returns its processor time so far, in seconds.
    pub(crate) fn seconds(&self) -> BenchResult<f64> {
        usage::processor_seconds(self.pid)
    }

    /// Waits for its end, and reads its processor time before the system forgets it.
    pub(crate) async fn wait_end(mut self) -> BenchResult<ProcessEnd> {
        let pid = self.pid_handle()?;
        let ended = tokio::task::spawn_blocking(move || {
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        });
        timeout(STEP_TIMEOUT, ended).await.map_err(|_| self.failure_text("does not end"))???;
        let seconds = usage::processor_seconds(self.pid)?;
        let status = self.child.wait().await?;
        Ok(ProcessEnd { code: status.code().unwrap_or(-1), seconds })
    }

    /// Waits for its end. Fails unless its exit code is 0.
    pub(crate) async fn wait_success(self) -> BenchResult<ProcessEnd> {
        let (name, stderr_lines) = (self.name.clone(), self.stderr_lines.clone());
        let ended = self.wait_end().await?;
        match ended.code {
            0 => Ok(ended),
            code => {
                Err(format!("{name} ended with code {code}; stderr: {:#?}", stderr_lines.borrow()).into())
            }
        }
    }

    /// Sends SIGTERM and waits for its end.
    pub(crate) async fn stop(self) -> BenchResult<ProcessEnd> {
        kill_process(self.pid_handle()?, Signal::TERM)?;
        self.wait_success().await
    }

    /// Returns the process's id, which stays valid until the process was waited for.
    fn pid_handle(&self) -> BenchResult<Pid> {
        Ok(Pid::from_raw(self.pid.cast_signed()).ok_or("a process without an id")?)
    }

    fn failure_text(&self, how: &str) -> String {
        format!("{} {how}; stderr: {:#?}", self.name, self.stderr_lines.borrow())
    }
}

/// Keeps the last lines.
async fn keep_last_lines(stderr: ChildStderr, sender: watch::Sender<VecDeque<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        sender.send_modify(|kept| {
            kept.push_back(line);
            if kept.len() > LINES_MAX {
                kept.pop_front();
            }
        });
    }
}
