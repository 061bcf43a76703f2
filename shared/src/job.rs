//! The trait that a user implements: [`Job`].

use std::{fmt, future::Future, ops::ControlFlow, str::FromStr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{InvalidName, LocalInput, Policy, State, TaskContext, TaskError, TaskIndex};

/// A divisible job: it is split into tasks, each task is processed, and the outputs are folded into
/// a report.
///
/// The value itself is the *spec*: it is serialised (at most 16 KiB) and travels with every batch,
/// so that any worker or sink that registered the kind can take part. A field that only the
/// splitting machine needs, such as the path of an input file, does not travel: mark it
/// `#[serde(skip)]`, and define [`Job::local`] and [`Job::with_local`], so that `producer resume`
/// finds it again.
///
/// A job can rely on this: `collect` sees every task that has an output exactly once, in any order,
/// whichever processes are killed. In return `split` must be deterministic, and `process` must
/// allow a second run of a task.
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
    /// The stable name on the wire: 1 to 63 characters of `a-z`, `0-9` and `-`.
    const KIND: &'static str;
    /// The version of the job's code and of its types. Raise it with every change after which a
    /// task, an output or the report means something else, or a task gives another output.
    ///
    /// The version travels with the job: workers of another version leave its tasks to others, and
    /// results of another version are not folded. See "How do I change a job while a fleet runs?"
    /// in `docs/guide.md`.
    const VERSION: u32 = 0;
    /// The part of the job that the ledger keeps besides the report. Defaults to none.
    /// [`Job::keep`] chooses by the parameters.
    const KEEP: Keep = Keep::Report;
    /// True if [`Job::fold_in_order`] makes the report at the job's end. The ledger then keeps the
    /// outputs regardless of [`Job::keep`]. Defaults to `false`: the report is that of `collect`.
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

    /// Checks the parameters and returns the number of tasks if it is known. Runs in the producer
    /// before anything is sent. Defaults to an unknown number.
    ///
    /// # Errors
    /// An error refuses the job; nothing was sent.
    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::unknown())
    }

    /// Returns the part of the job that the ledger keeps; `--keep` of the submitter overrides it.
    /// Runs in the producer, in workers and in the sink, so it may depend only on parameters that
    /// travel. A panic counts as [`Job::KEEP`], which is the default.
    fn keep(&self) -> Keep {
        Self::KEEP
    }

    /// Returns the policy of the job's tasks. Runs in the producer before anything is sent.
    /// Defaults to `defaults`, the policy of the command that submits: 5 attempts and no limits.
    ///
    /// Settings of the submitter, for instance `--max-attempts`, override the returned value field
    /// by field. The returned [`Policy::keep`] is ignored, since that is [`Job::keep`]. A
    /// panic refuses the job.
    ///
    /// ```
    /// # use gristmill_shared::Policy;
    /// fn policy(defaults: Policy) -> Policy {
    ///     Policy { max_attempts: 1, task_timeout_ms: Some(60_000), ..defaults }
    /// }
    /// # assert_eq!(policy(Policy::default()).max_attempts, 1);
    /// ```
    fn policy(&self, defaults: Policy) -> Policy {
        defaults
    }

    /// Returns the values that only the splitting machine needs, such as the path of an input file.
    /// They go into the producer's cursor, at most 64 KiB, and never to the broker. Defaults to
    /// none.
    ///
    /// Runs in the producer before anything is sent. A path should be absolute
    /// ([`std::path::absolute`]), since `producer resume` may run in another folder.
    ///
    /// # Errors
    /// An error refuses the job; nothing was sent.
    fn local(&self) -> Result<LocalInput, JobError> {
        Ok(LocalInput::none())
    }

    /// Restores the values of [`Job::local`] in a job that was decoded from its spec. Runs in the
    /// producer: before `split` when a job is resumed, and once at its submission, on a copy, as a
    /// check. Opens no input: that is for `split`.
    ///
    /// # Errors
    /// An error ends the resume and not the job. The default fails, since there is nothing to
    /// restore.
    fn with_local(&mut self, local: &LocalInput) -> Result<(), JobError> {
        let _ = local;
        Err(JobError::new(format_args!(
            "kind {} defines `local` and does not define `with_local`, so the job could not be resumed",
            Self::KIND
        )))
    }

    /// Returns the tasks as a lazy iterator. Runs in the producer, on a thread of its own. The same
    /// spec, and the same [`Job::local`], must yield the same tasks in the same order.
    ///
    /// An error or a panic aborts the job and is reported. In a resumed job, one before the first
    /// task that was not sent yet ends only the resume: the input may be away for a while.
    fn split(&self) -> impl Iterator<Item = Result<Self::Task, JobError>> + Send;

    /// Returns the tasks of [`Job::split`] from `index` on. Defaults to skipping; a job that can
    /// jump to an index overrides it.
    fn split_from(&self, index: TaskIndex) -> impl Iterator<Item = Result<Self::Task, JobError>> + Send {
        self.split().skip(usize::try_from(index.0).unwrap_or(usize::MAX))
    }

    /// Opens the state that the job's tasks share, such as a model or a pool of connections. Runs
    /// in a worker before the first task of the job there, once per worker and round of the job.
    /// [`TaskContext::state`] reads the state; it is dropped on a slot's thread when the round has
    /// ended. The time of this call counts for no task. Defaults to no state.
    ///
    /// # Errors
    /// An error fails the tasks of the batch that needed the state; they are tried again as after
    /// an error of `process`. A later batch calls `prepare` again, at most once a second. Until
    /// then batches are left to other workers at no cost, or fail if the error was
    /// [`TaskError::reject`]. A panic counts as an error.
    fn prepare(&self) -> Result<State, TaskError> {
        Ok(State::none())
    }

    /// Processes one task. Runs in a worker, at least once per task, on a slot's own thread, which
    /// may block and compute.
    ///
    /// # Errors
    /// `?` on any error means "try again later, up to the job's `max_attempts`";
    /// [`TaskError::reject`] means "never again"; [`TaskError::retry_after`] sets the delay. A
    /// panic counts as an error.
    ///
    /// A job implements this or [`Job::process_async`]. The default runs `process_async`, one task
    /// at a time.
    fn process(&self, task: Self::Task, cx: &TaskContext) -> Result<Self::Output, TaskError> {
        cx.block_on(self.process_async(task, cx))?
    }

    /// The async form of [`Job::process`], for tasks that wait: a slot keeps [`Job::IN_FLIGHT`] of
    /// them in flight.
    ///
    /// The future is dropped at its next await when the job is stopped and when its own deadline
    /// passes. All futures of a slot are polled on its one thread, so code that computes or blocks
    /// for long belongs in [`Job::process`]. One runtime for all slots of the worker drives
    /// sockets, timers and spawned futures.
    ///
    /// # Errors
    /// The errors are those of [`Job::process`]. The default rejects each task, because the job
    /// implements neither method.
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

    /// Folds one output into the report. Runs in the sink, exactly once per task that has an
    /// output, in any order, on a thread that may compute but should not block. `Break` ends the
    /// job early: nothing is folded after it. A panic fails the job.
    fn collect(&self, report: &mut Self::Report, index: TaskIndex, output: Self::Output) -> ControlFlow<()>;

    /// Folds one output with its task. The sink calls it instead of [`Job::collect`] if the job
    /// sets [`Job::WITH_TASKS`].
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

    /// Makes the report at the job's end, from all outputs in the order of their indices. Meant for
    /// folds whose result depends on the order, such as a plain sum of floats. Called only with
    /// [`Job::FOLDS_IN_ORDER`]; its result replaces the report of `collect`.
    ///
    /// Runs in the sink, once per end: when a reopened job ends again, it gets all outputs again.
    /// The outputs are read from the ledger one by one, so memory use stays constant. A panic fails
    /// the job.
    fn fold_in_order(&self, outputs: &mut dyn Iterator<Item = (TaskIndex, Self::Output)>) -> Self::Report {
        outputs.for_each(drop);
        Self::Report::default()
    }

    /// Returns the text that the user reads at the end, and whether it is an answer. Defaults to
    /// the report as JSON; if tasks failed, the text marks it as a partial report and no answer.
    fn conclude(&self, report: &Self::Report, account: &Account) -> Conclusion {
        match serde_json::to_string(report) {
            Ok(json) => Conclusion::if_complete(json, account),
            Err(error) => Conclusion::no_answer(format!("the report cannot be shown as JSON: {error}")),
        }
    }
}

/// The part of a job that the ledger keeps.
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
    /// True if outputs are kept.
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

/// The number of tasks and their unit, known before a job starts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The number of tasks that the split yields, if it is known.
    pub tasks: Option<u64>,
    /// The name of the tasks in progress and reports, in the plural. Defaults to `tasks`.
    #[serde(default = "default_unit")]
    pub unit: String,
}

fn default_unit() -> String {
    "tasks".into()
}

impl Plan {
    /// Plans exactly `tasks` tasks. A split that yields another number fails the job.
    #[must_use]
    pub fn of(tasks: u64) -> Self {
        Self { tasks: Some(tasks), ..Self::unknown() }
    }

    /// Plans a number of tasks that is unknown until the split ends.
    #[must_use]
    pub fn unknown() -> Self {
        Self { tasks: None, unit: default_unit() }
    }

    /// Sets the unit, in the plural.
    #[must_use]
    pub fn unit(self, unit: &str) -> Self {
        Self { unit: unit.into(), ..self }
    }
}

/// The number of tasks with each kind of outcome.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// Tasks in the job: as sealed by the producer, or as planned while the split goes on.
    pub total: Option<u64>,
    /// Tasks with an output.
    pub done: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Tasks that were not run because the job ended early.
    pub skipped: u64,
    /// Outcomes that arrived again and were ignored.
    pub duplicates: u64,
    /// Outcomes that arrived after the job's end and were ignored.
    pub late: u64,
    /// The reason why the job ended before all of its tasks did.
    pub stopped: Option<String>,
}

/// The text that the user reads at the job's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conclusion {
    /// The text, for stdout if it is an answer, else for stderr. One line or more, without a final
    /// line feed.
    pub text: String,
    /// True if the job found an answer. A search may end without one.
    pub answered: bool,
}

impl Conclusion {
    /// Makes a conclusion with an answer.
    #[must_use]
    pub fn answer(text: impl Into<String>) -> Self {
        Self { text: text.into(), answered: true }
    }

    /// Makes a conclusion with an answer if no task failed. Otherwise there is no answer, and
    /// `text` is shown as a partial report. A job that `collect` ended early has its answer even if
    /// tasks failed before.
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

    /// Makes a conclusion without an answer; `text` is the reason.
    #[must_use]
    pub fn no_answer(text: impl Into<String>) -> Self {
        Self { text: text.into(), answered: false }
    }
}

/// A job that cannot be planned, split or read.
///
/// The type deliberately does not implement `std::error::Error`, so that `?` converts any error
/// into it, as with [`TaskError`].
#[derive(Clone, PartialEq, Eq)]
pub struct JobError(String);

impl JobError {
    /// Makes an error from its reason: a lowercase fragment with the value seen and a hint.
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
    fn failed_task_makes_partial_report() {
        let account = Account { total: Some(3), done: 3, ..Account::default() };
        assert_eq!(Conclusion::if_complete("7", &account), Conclusion::answer("7"));
        for (total, failed, text) in [
            (Some(2), 2, "no answer: 2 of 2 tasks failed; partial report: 7"),
            (Some(2), 1, "no answer: 1 of 2 tasks failed; partial report: 7"),
            (None, 1, "no answer: 1 task failed; partial report: 7"),
            (None, 2, "no answer: 2 tasks failed; partial report: 7"),
        ] {
            let account = Account { total, failed, ..Account::default() };
            assert_eq!(Conclusion::if_complete("7", &account), Conclusion::no_answer(text));
        }
        let stopped = Some("the job has its answer".into());
        let account = Account { failed: 1, skipped: 1, stopped, ..Account::default() };
        assert_eq!(Conclusion::if_complete("7", &account), Conclusion::answer("7"));
    }
}
