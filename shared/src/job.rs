//! What a user writes: one `impl Job`.

use std::{fmt, future::Future, ops::ControlFlow, str::FromStr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{InvalidName, State, TaskContext, TaskError, TaskIndex};

/// A divisible job: how it is split, how one task is processed, how outputs are folded into a report.
///
/// The value itself is the *spec*: it is serialised (at most 16 KiB) and travels with every batch, so that any
/// worker or sink that registered the kind can take part. A field that only the splitting machine needs (the path
/// of an input file) is `#[serde(skip)]`.
///
/// The promise a job can rely on: `collect` sees every task that has an output exactly once, in any order,
/// whatever was killed when. The promise it gives: `split` is deterministic, and `process` may be run again.
///
/// ```
/// use std::ops::{ControlFlow, Range};
/// use gristmill_shared::{Job, JobError, Plan, TaskContext, TaskError, TaskIndex, testing};
/// use serde::{Deserialize, Serialize};
///
/// /// Adds up the numbers below `limit`, a thousand a task.
/// #[derive(Serialize, Deserialize)]
/// struct Sum { limit: u64 }
///
/// impl Job for Sum {
///     const KIND: &'static str = "sum";
///     type Task = Range<u64>;
///     type Output = u64;
///     type Report = u64;
///
///     fn plan(&self) -> Result<Plan, JobError> {
///         Ok(Plan::of(self.limit.div_ceil(1000)))
///     }
///     fn split(&self) -> impl Iterator<Item = Result<Range<u64>, JobError>> + Send {
///         let limit = self.limit;
///         (0..limit).step_by(1000).map(move |low| Ok(low..limit.min(low + 1000)))
///     }
///     fn process(&self, task: Range<u64>, cx: &TaskContext) -> Result<u64, TaskError> {
///         cx.check()?;
///         Ok(task.sum())
///     }
///     fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
///         *report += output;
///         ControlFlow::Continue(())
///     }
/// }
///
/// // No broker, and every task is delivered three times, shuffled.
/// let outcome = testing::run_local(&Sum { limit: 10_000 }, testing::Repeat(3)).unwrap();
/// assert_eq!(outcome.report, 49_995_000);
/// ```
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The stable name on the wire: 1 to 63 of `a-z`, `0-9` and `-`.
    const KIND: &'static str;
    /// The version of the job's code and of its types. Raise it with every change after which a
    /// task, an output or the report means something else, or a task gives another output.
    ///
    /// The version travels with the job: workers of another version leave its tasks to others, and
    /// results of another version are not folded. See "Changing a job while a fleet runs" in
    /// `docs/guide.md`.
    const VERSION: u32 = 0;
    /// What the ledger keeps besides the report. Defaults to nothing.
    const KEEP: Keep = Keep::Report;
    /// True if [`Job::fold_in_order`] makes the report at the job's end. The ledger then keeps the
    /// outputs, whatever [`Job::KEEP`] says. Defaults to `false`: the report is that of `collect`.
    const FOLDS_IN_ORDER: bool = false;
    /// True if the sink folds with [`Job::collect_with_task`]. Each task then travels once more,
    /// beside its output.
    const WITH_TASKS: bool = false;
    /// The number of tasks of a batch that a slot keeps in flight through [`Job::process_async`].
    /// Defaults to 0: a slot runs one task at a time, through [`Job::process`].
    const IN_FLIGHT: u32 = 0;
    /// The smallest unit that is processed, retried and accounted for. At most 1 MiB encoded; a
    /// float that is NaN or infinite ends the split.
    type Task: Serialize + DeserializeOwned + Send;
    /// The result of one task. At most 1 MiB encoded, as JSON. A float that is NaN or infinite is
    /// refused, as everywhere in a job's values: its task has failed for good.
    type Output: Serialize + DeserializeOwned + Send;
    /// The value that the sink folds all outputs into. A float that is NaN or infinite fails the
    /// job when the report is saved.
    type Report: Serialize + DeserializeOwned + Default + Send;

    /// Runs in the producer, before anything is sent: refuses bad parameters, and says how many tasks there will
    /// be if it is known. Defaults to an unknown number.
    ///
    /// # Errors
    /// An error refuses the job; nothing was sent.
    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::unknown())
    }

    /// Runs in the producer, on a thread of its own. Lazy; the same spec yields the same tasks in the same order.
    /// An error or a panic aborts the job, visibly.
    fn split(&self) -> impl Iterator<Item = Result<Self::Task, JobError>> + Send;

    /// [`Job::split`] from `index` on. Defaults to skipping; a job that can jump there overrides it.
    fn split_from(&self, index: TaskIndex) -> impl Iterator<Item = Result<Self::Task, JobError>> + Send {
        self.split().skip(usize::try_from(index.0).unwrap_or(usize::MAX))
    }

    /// Runs in a worker before the first task of the job there: opens what its tasks share, such as
    /// a model or a pool of connections. Once per worker and round of the job;
    /// [`TaskContext::state`] reads it, and it is dropped on a slot's thread when the round has
    /// ended. Its time counts for no task. Defaults to no state.
    ///
    /// # Errors
    /// The tasks of the batch that needed it have failed for this reason, and are tried again as
    /// after an error of `process`. Another batch tries again, at most once a second; until then
    /// batches are left to other workers, at no cost, or fail if the error was
    /// [`TaskError::reject`]. A panic counts as an error.
    fn prepare(&self) -> Result<State, TaskError> {
        Ok(State::none())
    }

    /// Runs in a worker, at least once per task, on a slot's own thread, which may block and compute.
    ///
    /// # Errors
    /// `?` on any error means "try again later, up to the job's `max_attempts`"; [`TaskError::reject`] means "never
    /// again"; [`TaskError::retry_after`] says when. A panic counts as an error.
    ///
    /// A job writes this or [`Job::process_async`], which is what the default runs, one task at a
    /// time.
    fn process(&self, task: Self::Task, cx: &TaskContext) -> Result<Self::Output, TaskError> {
        cx.block_on(self.process_async(task, cx))?
    }

    /// The async form of [`Job::process`], for tasks that wait: a slot keeps [`Job::IN_FLIGHT`] of
    /// them in flight.
    ///
    /// The future is dropped at its next await when the job is stopped and when its own deadline
    /// passes. All futures of a slot are polled on its one thread, so code that computes or blocks
    /// for long belongs into [`Job::process`]. Sockets, timers and what is spawned are driven by
    /// one runtime for all slots of the worker.
    ///
    /// # Errors
    /// The errors are those of [`Job::process`]. The default fails each task and says that the job
    /// wrote neither.
    fn process_async(
        &self,
        task: Self::Task,
        cx: &TaskContext,
    ) -> impl Future<Output = Result<Self::Output, TaskError>> + Send {
        drop(task);
        let _ = cx;
        let neither = format!(
            "kind {} defines neither process nor process_async (hint: write one of them)",
            Self::KIND
        );
        async { Err(TaskError::reject(neither)) }
    }

    /// Runs in the sink, exactly once per task that has an output, in any order, on a thread that may compute but
    /// should not block. `Break` ends the job early: nothing is folded after it. A panic fails the job.
    fn collect(&self, report: &mut Self::Report, index: TaskIndex, output: Self::Output) -> ControlFlow<()>;

    /// [`Job::collect`] with the task itself: called in its place if the job sets
    /// [`Job::WITH_TASKS`].
    fn collect_with_task(
        &self,
        report: &mut Self::Report,
        index: TaskIndex,
        task: Self::Task,
        output: Self::Output,
    ) -> ControlFlow<()> {
        drop(task);
        self.collect(report, index, output)
    }

    /// Makes the report at the job's end, from all outputs in the order of their indices; for folds
    /// whose result depends on the order, such as a plain sum of floats. Called only with
    /// [`Job::FOLDS_IN_ORDER`]; what `collect` folded until then is replaced.
    ///
    /// Runs in the sink, once per end: after a reopened job ends again it sees all outputs anew.
    /// The outputs are read from the ledger one by one, so that memory stays flat. A panic fails
    /// the job.
    fn fold_in_order(&self, outputs: &mut dyn Iterator<Item = (TaskIndex, Self::Output)>) -> Self::Report {
        outputs.for_each(drop);
        Self::Report::default()
    }

    /// Returns the text that the user reads at the end, and whether it is an answer. Defaults to
    /// the report as JSON; with failed tasks that is no answer but a partial report, and says so.
    fn conclude(&self, report: &Self::Report, account: &Account) -> Conclusion {
        match serde_json::to_string(report) {
            Ok(json) => Conclusion::if_complete(json, account),
            Err(error) => Conclusion::no_answer(format!("the report cannot be shown as JSON: {error}")),
        }
    }
}

/// What the ledger keeps of a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The report only.
    Report,
    /// Every output as well, stored in the same transaction; `sink outputs JOB` streams them.
    Outputs,
    /// Every output with its task; `sink outputs JOB --with-tasks` streams both. Each task then
    /// travels once more, beside its output.
    Tasks,
}

impl Keep {
    /// Returns whether outputs are kept.
    #[must_use]
    pub fn keeps_outputs(self) -> bool {
        self >= Self::Outputs
    }
}

impl FromStr for Keep {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let all = [Self::Report, Self::Outputs, Self::Tasks];
        all.into_iter().find(|keep| keep.to_string() == text).ok_or_else(|| InvalidName {
            what: "part of a job to keep",
            got: text.into(),
            expected: "report, outputs or tasks",
        })
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Report => "report",
            Self::Outputs => "outputs",
            Self::Tasks => "tasks",
        })
    }
}

/// What a job says before it starts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// How many tasks the split will yield, if that is known.
    pub tasks: Option<u64>,
    /// What one task is called in progress and reports, in the plural. Defaults to `tasks`.
    #[serde(default = "default_unit")]
    pub unit: String,
}

fn default_unit() -> String {
    "tasks".into()
}

impl Plan {
    /// A split that yields exactly this many tasks. A split that then yields another number fails the job.
    #[must_use]
    pub fn of(tasks: u64) -> Self {
        Self { tasks: Some(tasks), ..Self::unknown() }
    }

    /// A split whose end is not known before it is reached.
    #[must_use]
    pub fn unknown() -> Self {
        Self { tasks: None, unit: default_unit() }
    }

    /// Names the unit, in the plural.
    #[must_use]
    pub fn unit(self, unit: &str) -> Self {
        Self { unit: unit.into(), ..self }
    }
}

/// How many tasks have which outcome.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// Tasks in the job: as sealed by the producer, or as planned while the split goes on.
    pub total: Option<u64>,
    /// Tasks with an output.
    pub done: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Tasks that the job's early end made unnecessary.
    pub skipped: u64,
    /// Outcomes that came again and were ignored.
    pub duplicates: u64,
    /// Outcomes that came after the job had ended and were ignored.
    pub late: u64,
    /// Why the job ended before all of its tasks did.
    pub stopped: Option<String>,
}

/// What the user reads at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conclusion {
    /// For stdout if it is an answer, else for stderr. One line or several, without a final line feed.
    pub text: String,
    /// Whether the job found what it was asked for. A search may end without an answer.
    pub answered: bool,
}

impl Conclusion {
    /// The answer.
    #[must_use]
    pub fn answer(text: impl Into<String>) -> Self {
        Self { text: text.into(), answered: true }
    }

    /// The answer, if no task failed. Otherwise there is none, and `text` is shown as what the
    /// other tasks gave. A job that `collect` ended early has its answer, whatever failed before.
    #[must_use]
    pub fn if_complete(text: impl Into<String>, account: &Account) -> Self {
        let Account { total, failed, stopped, .. } = account;
        if *failed == 0 || stopped.is_some() {
            return Self::answer(text);
        }
        let total = total.map_or_else(String::new, |total| format!(" of {total}"));
        let (tasks, text) = (if *failed == 1 && total.is_empty() { "task" } else { "tasks" }, text.into());
        Self::no_answer(format!("no answer: {failed}{total} {tasks} failed; partial report: {text}"))
    }

    /// There is none, and why.
    #[must_use]
    pub fn no_answer(text: impl Into<String>) -> Self {
        Self { text: text.into(), answered: false }
    }
}

/// A job that cannot be planned, split or read.
///
/// The type deliberately is no `std::error::Error`, so that `?` turns any error into one, as with
/// [`TaskError`].
#[derive(Clone, PartialEq, Eq)]
pub struct JobError(String);

impl JobError {
    /// Says what is wrong: a lowercase fragment with the value seen and a hint.
    #[must_use]
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobError({:?})", self.0)
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self(crate::error_chain(&*error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tasks_make_a_report_partial() {
        let account = Account { total: Some(3), done: 3, ..Account::default() };
        assert_eq!(Conclusion::if_complete("7", &account), Conclusion::answer("7"));
        for (total, failed, told) in [
            (Some(2), 2, "no answer: 2 of 2 tasks failed; partial report: 7"),
            (Some(2), 1, "no answer: 1 of 2 tasks failed; partial report: 7"),
            (None, 1, "no answer: 1 task failed; partial report: 7"),
            (None, 2, "no answer: 2 tasks failed; partial report: 7"),
        ] {
            let account = Account { total, failed, ..Account::default() };
            assert_eq!(Conclusion::if_complete("7", &account), Conclusion::no_answer(told));
        }
        let stopped = Some("the job has its answer".into());
        let account = Account { failed: 1, skipped: 1, stopped, ..Account::default() };
        assert_eq!(Conclusion::if_complete("7", &account), Conclusion::answer("7"));
    }
}
