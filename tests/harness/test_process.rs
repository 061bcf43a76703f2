//! One of our programs, as a process.

use std::{os::unix::process::ExitStatusExt as _, process::Stdio};

use gristmill_test_support::is_stopped;
use rustix::process::{Pid, WaitIdOptions};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use super::within;

/// A running process. Dropping it kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    said: watch::Receiver<Vec<String>>,
    stdout: JoinHandle<String>,
}

/// The exit code and the output of a process that has ended.
#[derive(Debug)]
pub(crate) struct ProcessOutput {
    /// Its exit code; if a signal ended it, that signal's number below zero.
    pub(crate) code: i32,
    /// Everything on stdout.
    pub(crate) stdout: String,
    /// Everything on stderr.
    pub(crate) stderr: String,
}

impl Process {
    pub(crate) fn start(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let mut stdout = child.stdout.take().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, said) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        let stdout = tokio::spawn(async move {
            let mut text = String::new();
            stdout.read_to_string(&mut text).await.unwrap();
            text
        });
        Self { name: name.into(), child, said, stdout }
    }

    /// Waits until a line on stderr contains `text`, and returns the line.
    pub(crate) async fn wait_for(&mut self, text: &str) -> String {
        let find = |lines: &Vec<String>| lines.iter().find(|line| line.contains(text)).cloned();
        let line = within(text, self.said.wait_for(|lines| find(lines).is_some()))
            .await
            .ok()
            .and_then(|lines| find(&lines));
        line.unwrap_or_else(|| {
            panic!("{} ended without saying {text:?}: {:#?}", self.name, self.said.borrow())
        })
    }

    /// Waits until `times` lines on stderr contain `text`.
    pub(crate) async fn wait_for_times(&mut self, text: &str, times: usize) {
        let enough = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(text)).count() >= times;
        let said = within(text, self.said.wait_for(enough)).await.is_ok();
        assert!(said, "{} ended without saying {text:?} {times} times: {:#?}", self.name, self.said.borrow());
    }

    /// Returns the number of lines on stderr that contain `text` so far.
    pub(crate) fn count_lines(&self, text: &str) -> usize {
        self.said.borrow().iter().filter(|line| line.contains(text)).count()
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        let status = within("a killed process", self.child.wait()).await.unwrap();
        assert!(!status.success(), "{} ended by itself before it could be killed", self.name);
    }

    /// Returns its process id, while it runs.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    /// Sends SIGTERM or another signal.
    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended, by itself or otherwise. May be cancelled and called again.
    pub(crate) async fn wait(&mut self) {
        within(&self.name, self.child.wait()).await.unwrap();
    }

    /// Waits until a signal has stopped it.
    pub(crate) async fn wait_frozen(&self) {
        let pid = Pid::from_raw(self.id().cast_signed()).unwrap();
        within("a frozen process", async {
            while !is_stopped(pid, WaitIdOptions::NOHANG).unwrap() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Sends SIGTERM, and returns its output.
    pub(crate) async fn stop(self) -> ProcessOutput {
        self.signal("-TERM").await;
        self.output().await
    }

    /// Waits for its end, and returns its output.
    pub(crate) async fn output(mut self) -> ProcessOutput {
        let status = within(&self.name, self.child.wait()).await.unwrap();
        let stdout = within("its stdout", self.stdout).await.unwrap();
        // The sender is dropped when everything has been read.
        while self.said.changed().await.is_ok() {}
        let stderr = self.said.borrow().join("\n");
        let code = status.code().or(status.signal().map(|signal| -signal)).expect("it has ended");
        ProcessOutput { code, stdout, stderr }
    }
}

impl ProcessOutput {
    /// The code of a process that aborted: SIGABRT's.
    pub(crate) const ABORTED: i32 = -6;

    /// Returns its one line on stdout, if it ended well.
    pub(crate) fn answer(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.trim_end()
    }
}
