//! Job kinds for this program's own roles.

use std::{
    fs::File,
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use gristmill::prelude::*;
use gristmill_jobs::{Spin, SpinOutput, SpinReport, SpinTask};
use serde::{Deserialize, Serialize};

/// A [`Spin`] with its spec, whose work was measured before, so that all runs do the same work.
/// Workers and sinks see a `spin` like any other.
#[derive(Debug, Serialize, Deserialize, clap::Args)]
#[serde(transparent)]
pub(crate) struct GivenSpin {
    /// The spec, as JSON
    #[arg(long, value_parser = spin)]
    spec: Spin,
}

fn spin(json: &str) -> Result<Spin, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

impl Job for GivenSpin {
    const KIND: &'static str = Spin::KIND;
    type Task = SpinTask;
    type Output = SpinOutput;
    type Report = SpinReport;

    fn plan(&self) -> Result<Plan, JobError> {
        self.spec.plan()
    }
    fn split(&self) -> impl Iterator<Item = Result<SpinTask, JobError>> + Send {
        self.spec.split()
    }
    fn process(&self, task: SpinTask, cx: &TaskContext) -> Result<SpinOutput, TaskError> {
        self.spec.process(task, cx)
    }
    fn collect(&self, report: &mut SpinReport, index: TaskIndex, output: SpinOutput) -> ControlFlow<()> {
        self.spec.collect(report, index, output)
    }
    fn conclude(&self, report: &SpinReport, account: &Account) -> Conclusion {
        self.spec.conclude(report, account)
    }
}

/// A search that ends when a certain task is done. Its workers log when their tasks begin and end.
#[derive(Debug, Serialize, Deserialize, clap::Args)]
pub(crate) struct Hunt {
    /// The work of each task: a spin's spec, as JSON
    #[arg(long, value_parser = spin)]
    spec: Spin,
    /// The task that ends the search
    #[arg(long)]
    target: u64,
}

impl Job for Hunt {
    const KIND: &'static str = "hunt";
    type Task = SpinTask;
    type Output = u64;
    /// The task that was found.
    type Report = Option<u64>;

    fn plan(&self) -> Result<Plan, JobError> {
        self.spec.plan()
    }
    fn split(&self) -> impl Iterator<Item = Result<SpinTask, JobError>> + Send {
        self.spec.split()
    }
    fn process(&self, task: SpinTask, cx: &TaskContext) -> Result<u64, TaskError> {
        TaskLog::record(LogEntry::Begun)?;
        let done = self.spec.process(task, cx);
        TaskLog::record(LogEntry::Ended)?;
        done.map(|output| output.index)
    }
    fn collect(&self, found: &mut Option<u64>, _: TaskIndex, output: u64) -> ControlFlow<()> {
        if output == self.target {
            *found = Some(output);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
    fn conclude(&self, found: &Option<u64>, _: &Account) -> Conclusion {
        match found {
            Some(index) => Conclusion::answer(index.to_string()),
            None => Conclusion::no_answer("not found"),
        }
    }
}

/// This process's log and its file, under one lock. Without it, of two tasks that end at the same
/// time the first might be written last.
static TASK_LOG: Mutex<Option<(TaskLog, File)>> = Mutex::new(None);

/// An entry of the log.
#[derive(Debug, Clone, Copy)]
enum LogEntry {
    Begun,
    Ended,
}

/// A worker's log of its tasks, in a file: the numbers of begun and ended tasks, and the time of
/// the last end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskLog {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Microseconds since 1970.
    pub(crate) last_end_us: u64,
}

impl TaskLog {
    /// Writes the log to this file from now on.
    pub(crate) fn write_to(file: File) {
        *lock_task_log() = Some((Self::default(), file));
    }

    /// Reads a worker's log.
    pub(crate) fn read(file: &File) -> std::io::Result<Self> {
        let mut bytes = [0; 24];
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            return Ok(Self::default()); // no task has begun yet
        }
        let at = |index: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[index * 8..][..8]);
            u64::from_ne_bytes(number)
        };
        Ok(Self { begun: at(0), ended: at(1), last_end_us: at(2) })
    }

    /// Records the begin or the end of a task.
    fn record(entry: LogEntry) -> Result<(), TaskError> {
        let mut guard = lock_task_log();
        let (log, file) = guard.as_mut().ok_or_else(|| TaskError::reject("this worker keeps no task log"))?;
        match entry {
            LogEntry::Begun => log.begun += 1,
            LogEntry::Ended => (log.ended, log.last_end_us) = (log.ended + 1, now_us()),
        }
        let numbers = [log.begun, log.ended, log.last_end_us].map(u64::to_ne_bytes);
        Ok(file.write_all_at(numbers.as_flattened(), 0)?)
    }
}

/// Locks the log. Nothing panics under the lock.
fn lock_task_log() -> MutexGuard<'static, Option<(TaskLog, File)>> {
    TASK_LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the time in microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
