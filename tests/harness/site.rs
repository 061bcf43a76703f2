//! A lane with its own state, on which a test runs processes.

use std::{ffi::OsStr, path::PathBuf, sync::Arc, time::Duration};

use gristmill_shared::{JobId, Lane, QueueRole, Transport};
use tempfile::TempDir;
use tokio::process::Command;

use super::{Process, ProcessOutput, broker::broker_url, within};

/// A lane of its own on the shared broker, and a directory for ledgers and cursors.
pub(crate) struct Site {
    dir: TempDir,
    lane: Lane,
    broker: String,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::at(broker_url())
    }

    /// Creates a site on the broker at this URL.
    pub(crate) fn at(broker: String) -> Self {
        let lane = format!("test-{}", JobId::generate()).parse().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), lane, broker }
    }

    /// Returns the site's lane.
    pub(crate) fn lane(&self) -> Lane {
        self.lane.clone()
    }

    /// Returns a path in the site's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts one of our programs here; `words` are its name and its arguments.
    pub(crate) fn start(&self, words: &str) -> Process {
        self.start_with(words, |command| command)
    }

    /// Like [`Site::start`], with a changed command.
    pub(crate) fn start_with(
        &self,
        words: &str,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Process {
        let mut command = self.command(words);
        change(&mut command);
        Process::start(words, command)
    }

    /// Returns one of our programs, not started yet.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut split = words.split_whitespace();
        let program = match split.next().unwrap() {
            "gristmill" => env!("CARGO_BIN_EXE_gristmill"),
            "producer" => env!("CARGO_BIN_EXE_producer"),
            "worker" => env!("CARGO_BIN_EXE_worker"),
            "sink" => env!("CARGO_BIN_EXE_sink"),
            other => panic!("no program {other}"),
        };
        let mut command = self.program(program);
        command.args(split);
        command
    }

    /// Returns any program, not started yet. As with our own, its environment names the site, and
    /// has nothing else.
    pub(crate) fn program(&self, path: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("GRISTMILL_STATE", self.dir.path())
            .env("GRISTMILL_LANE", self.lane.as_str())
            .env("GRISTMILL_BROKER", &self.broker);
        command
    }

    /// Waits until the job's ledger has outcomes.
    pub(crate) async fn wait_for_outcomes(&self, job: &str) {
        self.wait_shown(job, |shown| shown["account"]["done"].as_u64() > Some(0)).await;
    }

    /// Waits until `sink show` has `what` of the job, and returns all that it shows.
    pub(crate) async fn wait_shown(
        &self,
        job: &str,
        what: impl Fn(&serde_json::Value) -> bool + Send + Sync,
    ) -> serde_json::Value {
        within("the ledger to show something", async {
            loop {
                let shown = self.run(&format!("sink show {job} --json")).await;
                if let Ok(shown) = serde_json::from_str(&shown.stdout)
                    && what(&shown)
                {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Runs one of our programs to its end.
    pub(crate) async fn run(&self, words: &str) -> ProcessOutput {
        self.start(words).output().await
    }

    /// Runs one of our programs that prints JSON.
    pub(crate) async fn json(&self, words: &str) -> serde_json::Value {
        let ended = self.run(words).await;
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{words}: {error}: {ended:?}"))
    }

    /// Opens a connection of the test's own.
    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        let transport = gristmill::connect(&self.broker, "test").await.unwrap();
        transport.open_lane(&self.lane).await.unwrap();
        transport
    }

    /// Returns one of the lane's queues.
    pub(crate) fn queue(&self, role: QueueRole) -> gristmill_shared::Queue {
        role.of(&self.lane)
    }

    /// True if nothing waits in a queue. The queue must have no other consumer.
    pub(crate) async fn is_empty(&self, role: QueueRole) -> bool {
        let transport = self.transport().await;
        let mut consumer = transport.consume(&self.queue(role), 1).await.unwrap();
        let empty = tokio::time::timeout(Duration::from_millis(300), consumer.recv(1)).await.is_err();
        drop(consumer);
        within("closing", transport.close()).await;
        empty
    }

    /// Checks that a job's ledger adds up, and returns what `sink verify` counts.
    pub(crate) async fn verify(&self, job: &str) -> serde_json::Value {
        let verified = self.json(&format!("sink verify {job} --json")).await;
        assert_eq!(verified["ok"], true, "{verified}");
        verified
    }
}
