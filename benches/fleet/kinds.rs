//! Kinds of job for this program's own roles.

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

/// A [`Spin`] as it travels, its work measured before: so that others can do the very same. To workers and sinks it is a
/// `spin` like any other.
#[derive(Debug, Serialize, Deserialize, clap::Args)]
#[serde(transparent)]
pub(crate) struct Given {
    /// The spec, as JSON
    #[arg(long, value_parser = spin)]
    spec: Spin,
}

fn spin(json: &str) -> Result<Spin, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

impl Job for Given {
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

/// A search that ends when a certain task is done. Its workers write down when their tasks begin and end.
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
    /// What was found.
    type Report = Option<u64>;

    fn plan(&self) -> Result<Plan, JobError> {
        self.spec.plan()
    }
    fn split(&self) -> impl Iterator<Item = Result<SpinTask, JobError>> + Send {
        self.spec.split()
    }
    fn process(&self, task: SpinTask, cx: &TaskContext) -> Result<u64, TaskError> {
        Diary::count(Entry::Begun)?;
        let done = self.spec.process(task, cx);
        Diary::count(Entry::Ended)?;
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

/// This process's diary, and the file that it is kept in. Under one lock: else of two tasks that end at the same time the first
/// might be written last.
static KEPT: Mutex<Option<(Diary, File)>> = Mutex::new(None);

/// What there is to be written down of a task.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Begun,
    Ended,
}

/// What a worker tells of its tasks, in a file: how many it has begun, how many have ended, and when the last did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Diary {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Microseconds since 1970.
    pub(crate) last_end_us: u64,
}

impl Diary {
    /// Keeps it in this file from now on.
    pub(crate) fn keep(file: File) {
        *kept() = Some((Self::default(), file));
    }

    /// Reads a worker's.
    pub(crate) fn read(file: &File) -> std::io::Result<Self> {
        let mut bytes = [0; 24];
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            return Ok(Self::default()); // no task has begun yet
        }
        let at = |place: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[place * 8..][..8]);
            u64::from_ne_bytes(number)
        };
        Ok(Self { begun: at(0), ended: at(1), last_end_us: at(2) })
    }

    /// Counts a task.
    fn count(entry: Entry) -> Result<(), TaskError> {
        let mut kept = kept();
        let (diary, file) = kept.as_mut().ok_or_else(|| TaskError::reject("this worker keeps no diary"))?;
        match entry {
            Entry::Begun => diary.begun += 1,
            Entry::Ended => (diary.ended, diary.last_end_us) = (diary.ended + 1, now_us()),
        }
        let numbers = [diary.begun, diary.ended, diary.last_end_us].map(u64::to_ne_bytes);
        Ok(file.write_all_at(numbers.as_flattened(), 0)?)
    }
}

/// Nothing panics under the lock.
fn kept() -> MutexGuard<'static, Option<(Diary, File)>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
