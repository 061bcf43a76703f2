//! The environment of the benchmark: a broker of its own, a directory, and the programs.

use std::{
    env,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use gristmill::testing::LocalBroker;
use gristmill_shared::Lane;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{BenchResult, usage::processor_seconds};

/// A broker, and a directory for ledgers and cursors.
#[derive(Debug)]
pub(crate) struct BenchEnv {
    url: String,
    version: String,
    broker_pid: u32,
    dir: TempDir,
    /// This program, which also is a producer of given work, and the processes of the baseline.
    program: PathBuf,
    lanes: AtomicU32,
    _broker: LocalBroker,
}

impl BenchEnv {
    /// Starts the broker.
    pub(crate) async fn start() -> BenchResult<Self> {
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

    /// Returns RabbitMQ's version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the broker's processor time so far, in seconds.
    pub(crate) fn broker_seconds(&self) -> BenchResult<f64> {
        processor_seconds(self.broker_pid)
    }

    /// Returns an unused lane.
    pub(crate) fn new_lane(&self) -> BenchResult<Lane> {
        Ok(Lane::new(&format!("bench-{}", self.lanes.fetch_add(1, Ordering::Relaxed)))?)
    }

    /// Returns a command that runs one of the released programs on a lane.
    pub(crate) fn program(&self, path: &str, lane: &Lane) -> Command {
        self.on_lane(Command::new(path), lane)
    }

    /// Returns a command that runs this program in one of Gristmill's roles, on a lane.
    pub(crate) fn own_program(&self, lane: &Lane) -> Command {
        self.on_lane(Command::new(&self.program), lane)
    }

    /// Returns a command that runs this program as a process of the baseline.
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
