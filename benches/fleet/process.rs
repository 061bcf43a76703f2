//! One process of the benchmark: what it says, what it uses, how it ends.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    sync::watch,
    time::timeout,
};

use crate::{Outcome, usage};

/// How long anything may take before the benchmark gives up. Generous: the longest job takes a few minutes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
/// How many of a process's last lines on stderr are kept, to be told if it fails.
const LINES_KEPT: usize = 30;

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    pid: u32,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    said: watch::Receiver<VecDeque<String>>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    /// Processor time, from its start to its end.
    pub(crate) seconds: f64,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(name: &str, mut command: Command) -> Outcome<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let pid = child.id().ok_or("a process without an id")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let (sender, said) = watch::channel(VecDeque::new());
        tokio::spawn(listen(child.stderr.take().ok_or("no stderr")?, sender));
        Ok(Self { name: name.into(), pid, child, stdout: BufReader::new(stdout).lines(), said })
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has said something with these words on stderr.
    pub(crate) async fn says(&mut self, words: &str) -> Outcome<()> {
        let has = |lines: &VecDeque<String>| lines.iter().any(|line| line.contains(words));
        let said = timeout(PATIENCE, self.said.wait_for(has)).await;
        let said = said.is_ok_and(|said| said.is_ok());
        if said { Ok(()) } else { Err(self.fails(&format!("did not say {words:?}")).into()) }
    }

    /// Its next line on stdout.
    pub(crate) async fn line(&mut self) -> Outcome<String> {
        let line = timeout(PATIENCE, self.stdout.next_line()).await.ok().and_then(Result::ok).flatten();
        line.ok_or_else(|| self.fails("printed no further line").into())
    }

    /// What it prints as JSON, on one line or several.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Outcome<T> {
        let mut json = String::new();
        loop {
            json += &self.line().await?;
            match serde_json::from_str(&json) {
                Err(error) if error.is_eof() => {}
                read => return Ok(read?),
            }
        }
    }

    /// Lets it go on that waits for a line on stdin.
    pub(crate) async fn go(&mut self) -> Outcome<()> {
        let stdin = self.child.stdin.as_mut().ok_or("no stdin")?;
        Ok(stdin.write_all(b"go\n").await?)
    }

    /// Processor time so far.
    pub(crate) fn seconds(&self) -> Outcome<f64> {
        usage::processor_seconds(self.pid)
    }

    /// Waits for its end, and looks at what it has used before the system forgets it.
    pub(crate) async fn end(mut self) -> Outcome<Ended> {
        let pid = self.id()?;
        let ended = tokio::task::spawn_blocking(move || {
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        });
        timeout(PATIENCE, ended).await.map_err(|_| self.fails("does not end"))???;
        let seconds = usage::processor_seconds(self.pid)?;
        let status = self.child.wait().await?;
        Ok(Ended { code: status.code().unwrap_or(-1), seconds })
    }

    /// Waits for its end, which must be a good one.
    pub(crate) async fn end_well(self) -> Outcome<Ended> {
        let (name, said) = (self.name.clone(), self.said.clone());
        let ended = self.end().await?;
        match ended.code {
            0 => Ok(ended),
            code => Err(format!("{name} ended with code {code}; it said: {:#?}", said.borrow()).into()),
        }
    }

    /// SIGTERM, and its end.
    pub(crate) async fn stop(self) -> Outcome<Ended> {
        kill_process(self.id()?, Signal::TERM)?;
        self.end_well().await
    }

    /// It is ours as long as we have not waited for it.
    fn id(&self) -> Outcome<Pid> {
        Ok(Pid::from_raw(self.pid.cast_signed()).ok_or("a process without an id")?)
    }

    fn fails(&self, how: &str) -> String {
        format!("{} {how}; it said: {:#?}", self.name, self.said.borrow())
    }
}

/// Keeps the last lines.
async fn listen(stderr: ChildStderr, said: watch::Sender<VecDeque<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        said.send_modify(|said| {
            said.push_back(line);
            if said.len() > LINES_KEPT {
                said.pop_front();
            }
        });
    }
}
