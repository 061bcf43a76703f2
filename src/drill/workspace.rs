//! Where a drill takes place: its directory, its lane, its broker, and the notes that everybody takes.

use std::{
    fmt::Display,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gristmill_sink::LedgerReader;
use tokio::{process::Command, time::Instant};

use super::{
    account::{Act, Left},
    broker::Broker,
    supervised_process::{Child, Mark},
    error::{DrillError, cannot},
    process_group::Leash,
    plan::Fault,
    workload::Submitted,
};

/// What all parts of a drill share.
#[derive(Debug)]
pub(super) struct Site {
    exe: PathBuf,
    pub(super) dir: PathBuf,
    lane: String,
    pub(super) broker: Broker,
    began: Instant,
    notes: Mutex<Notes>,
    /// Last, so that it is dropped last.
    leash: Leash,
}

/// What was noted.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) jobs: Vec<Submitted>,
    pub(super) acts: Vec<Act>,
    pub(super) left: Vec<Left>,
    pub(super) defects: Vec<String>,
}

impl Site {
    /// Makes the directory, with what the name of the lane is too.
    pub(super) fn new(broker: Broker) -> Result<Self, DrillError> {
        let id = format!("drill-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(format!("gristmill-{id}"));
        DirBuilder::new().mode(0o700).create(&dir).map_err(cannot("make the drill's directory"))?;
        fs::create_dir(dir.join("logs")).map_err(cannot("make the drill's directory"))?;
        Ok(Self {
            exe: std::env::current_exe().map_err(cannot("find this program"))?,
            dir,
            lane: id,
            broker,
            began: Instant::now(),
            notes: Mutex::default(),
            leash: Leash::new().map_err(cannot("start a shell"))?,
        })
    }

    /// Starts this program in one of its roles. What it says goes to the log of `post`.
    pub(super) fn start(&self, post: &str, words: &[String], mark: Mark) -> io::Result<Child> {
        let log = self.dir.join("logs").join(format!("{}.log", post.replace(' ', "-")));
        let mut log = OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(log, "--- {:.1} s: {}", self.began.elapsed().as_secs_f64(), words.join(" "))?;
        let mut command = Command::new(&self.exe);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("GRISTMILL_") {
                command.env_remove(name);
            }
        }
        command
            .args(words)
            .current_dir(&self.dir)
            .env("GRISTMILL_BROKER", self.broker.url())
            .envs(self.broker.variables())
            .env("GRISTMILL_LANE", &self.lane)
            .env("GRISTMILL_STATE", &self.dir)
            .process_group(self.leash.group());
        Child::start(command, mark, log)
    }

    pub(super) fn lane(&self) -> &str {
        &self.lane
    }

    pub(super) fn cursors(&self) -> PathBuf {
        self.dir.join("jobs")
    }

    fn ledger(&self) -> PathBuf {
        self.dir.join(format!("{}.ledger", self.lane))
    }

    /// Looks into the ledger, off the runtime's threads.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&LedgerReader) -> Result<T, gristmill_sink::SinkError> + Send + 'static,
    ) -> Result<T, String> {
        let ledger = self.ledger();
        let read = move || LedgerReader::open(&ledger).and_then(|reader| look(&reader));
        let done = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
        done.map_err(|error| gristmill_shared::error_chain(&error))
    }

    /// How many tasks have an outcome; 0 if there is no ledger yet.
    pub(super) async fn outcomes(&self) -> u64 {
        let jobs = self.read(LedgerReader::jobs).await.unwrap_or_default();
        jobs.iter().map(|job| job.account.done + job.account.failed).sum()
    }

    /// How many tasks have been submitted and have no outcome yet.
    pub(super) async fn outstanding(&self) -> u64 {
        let submitted: u64 = self.jobs().iter().map(|submitted| submitted.tasks).sum();
        submitted.saturating_sub(self.outcomes().await)
    }

    pub(super) fn jobs(&self) -> Vec<Submitted> {
        self.notes().jobs.clone()
    }

    pub(super) fn submitted(&self, job: Submitted) {
        self.notes().jobs.push(job);
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fault was done, or not.
    pub(super) fn act(&self, fault: Fault, came: Result<String, String>) {
        match &came {
            Ok(how) => self.say(format_args!("{fault}: {how}")),
            Err(why) => self.say(format_args!("{fault}: did not happen: {why}")),
        }
        self.notes().acts.push(Act { fault, came });
    }

    /// A process ended though nobody had asked it to.
    pub(super) fn left(&self, left: Left) {
        self.say(format_args!("{left}"));
        self.notes().left.push(left);
    }

    /// Something is wrong that no fault excuses.
    pub(super) fn defect(&self, what: String) {
        self.say(format_args!("defect: {what}"));
        self.notes().defects.push(what);
    }

    /// Since the drill began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells the person at the terminal.
    pub(super) fn say(&self, news: impl Display) {
        let _ = writeln!(io::stderr(), "[{:6.1} s] {news}", self.began.elapsed().as_secs_f64());
    }
}
