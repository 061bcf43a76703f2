//! What a run of the benchmark stands on: a broker of its own, a directory, and the programs.

use std::{
    env,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use gristmill::testing::LocalBroker;
use gristmill_shared::Lane;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{Outcome, usage::processor_seconds};

/// A broker, and a place for ledgers and cursors.
#[derive(Debug)]
pub(crate) struct Site {
    url: String,
    version: String,
    broker_pid: u32,
    dir: TempDir,
    /// This program, which also is a producer of exact work, and the processes of the baseline.
    program: PathBuf,
    lanes: AtomicU32,
    _broker: LocalBroker,
}

impl Site {
    /// Starts the broker.
    pub(crate) async fn start() -> Outcome<Self> {
        let broker = tokio::task::spawn_blocking(LocalBroker::start).await??;
        let broker_pid = broker.pid().ok_or("the broker is down")?;
        Ok(Self {
            url: broker.url(),
            version: broker.version().into(),
            broker_pid,
            dir: tempfile::tempdir()?,
            program: env::current_exe()?,
            lanes: AtomicU32::new(0),
            _broker: broker,
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// RabbitMQ's version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The broker's processor time so far.
    pub(crate) fn broker_seconds(&self) -> Outcome<f64> {
        processor_seconds(self.broker_pid)
    }

    /// A lane that nobody has used.
    pub(crate) fn new_lane(&self) -> Outcome<Lane> {
        Ok(Lane::new(&format!("bench-{}", self.lanes.fetch_add(1, Ordering::Relaxed)))?)
    }

    /// One of our programs, as everybody has it, on a lane.
    pub(crate) fn program(&self, path: &str, lane: &Lane) -> Command {
        self.on_lane(Command::new(path), lane)
    }

    /// This program in one of Gristmill's roles, on a lane.
    pub(crate) fn own_program(&self, lane: &Lane) -> Command {
        self.on_lane(Command::new(&self.program), lane)
    }

    /// This program as a process of the baseline.
    pub(crate) fn baseline(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("bare").args(arguments).env_clear();
        command
    }

    fn on_lane(&self, mut command: Command, lane: &Lane) -> Command {
        command
            .env_clear()
            .env("GRISTMILL_STATE", self.dir())
            .env("GRISTMILL_LANE", lane.as_str())
            .env("GRISTMILL_BROKER", &self.url);
        command
    }
}
