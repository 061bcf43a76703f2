//! The workspace of a drill: its directory, lane, broker and notes.

use std::{
    fmt::Display,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gristmill_ledger::{LedgerError, LedgerReader};
use gristmill_sqlite::SqliteAccess;
use tokio::{process::Command, time::Instant};

use super::{
    account::{FaultAttempt, UnplannedExit},
    drill_broker::DrillBroker,
    drill_job::DrillJob,
    error::{DrillError, system_error},
    plan::DrillFault,
    process_group::ProcessGroup,
    supervised_process::{StartupSign, SupervisedProcess},
};

/// The state that all parts of a drill share.
#[derive(Debug)]
pub(super) struct Workspace {
    exe: PathBuf,
    pub(super) dir: PathBuf,
    lane: String,
    pub(super) broker: DrillBroker,
    began: Instant,
    notes: Mutex<DrillNotes>,
    /// Last, so that it is dropped last.
    group: ProcessGroup,
}

/// The notes of a drill.
#[derive(Debug, Default)]
pub(super) struct DrillNotes {
    pub(super) jobs: Vec<DrillJob>,
    pub(super) attempts: Vec<FaultAttempt>,
    pub(super) left: Vec<UnplannedExit>,
    pub(super) defects: Vec<String>,
}

impl Workspace {
    /// Creates the directory. Its name contains that of the lane.
    pub(super) fn new(broker: DrillBroker) -> Result<Self, DrillError> {
        let id = format!("drill-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(format!("gristmill-{id}"));
        DirBuilder::new().mode(0o700).create(&dir).map_err(system_error("make the drill's directory"))?;
        fs::create_dir(dir.join("logs")).map_err(system_error("make the drill's directory"))?;
        Ok(Self {
            exe: std::env::current_exe().map_err(system_error("find this program"))?,
            dir,
            lane: id,
            broker,
            began: Instant::now(),
            notes: Mutex::default(),
            group: ProcessGroup::new().map_err(system_error("start a shell"))?,
        })
    }

    /// Starts this program in one of its roles. Its output goes to the log `name`.
    pub(super) fn start_process(
        &self,
        name: &str,
        words: &[String],
        sign: StartupSign,
    ) -> io::Result<SupervisedProcess> {
        let log = self.dir.join("logs").join(format!("{}.log", name.replace(' ', "-")));
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
            .process_group(self.group.id());
        SupervisedProcess::start(command, sign, log)
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

    /// Reads the ledger, off the runtime's threads.
    pub(super) async fn read_ledger<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut LedgerReader) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, String> {
        let ledger = self.ledger();
        let read = move || look(&mut LedgerReader::new(Box::new(SqliteAccess::open(&ledger)?)));
        let done = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
        done.map_err(|error| gristmill_shared::error_chain(&error))
    }

    /// Returns the number of tasks with an outcome; 0 if there is no ledger yet.
    pub(super) async fn outcome_count(&self) -> u64 {
        let jobs = self.read_ledger(LedgerReader::jobs).await.unwrap_or_default();
        jobs.iter().map(|job| job.account.done + job.account.failed).sum()
    }

    /// Returns the number of tasks that were submitted and have no outcome yet.
    pub(super) async fn outstanding_count(&self) -> u64 {
        let submitted: u64 = self.jobs().iter().map(|submitted| submitted.tasks).sum();
        submitted.saturating_sub(self.outcome_count().await)
    }

    pub(super) fn jobs(&self) -> Vec<DrillJob> {
        self.notes().jobs.clone()
    }

    pub(super) fn record_job(&self, job: DrillJob) {
        self.notes().jobs.push(job);
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, DrillNotes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a fault that happened, or did not.
    pub(super) fn record_fault(&self, fault: DrillFault, result: Result<String, String>) {
        match &result {
            Ok(how) => self.print_status(format_args!("{fault}: {how}")),
            Err(why) => self.print_status(format_args!("{fault}: did not happen: {why}")),
        }
        self.notes().attempts.push(FaultAttempt { fault, result });
    }

    /// Records the end of a process without a fault.
    pub(super) fn record_exit(&self, left: UnplannedExit) {
        self.print_status(format_args!("{left}"));
        self.notes().left.push(left);
    }

    /// Records a defect that no fault explains.
    pub(super) fn record_defect(&self, what: String) {
        self.print_status(format_args!("defect: {what}"));
        self.notes().defects.push(what);
    }

    /// Returns the time since the drill began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Prints a line on stderr, with the time.
    pub(super) fn print_status(&self, text: impl Display) {
        let _ = writeln!(io::stderr(), "[{:6.1} s] {text}", self.began.elapsed().as_secs_f64());
    }
}
