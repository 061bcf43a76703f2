//! Jobs without their type parameters: what the roles work with.
//!
//! The type is erased per **batch**, never per task: one virtual call, then a typed loop over the tasks.

mod fold;
mod in_flight;
mod prepare;
mod process;
mod running_index;
mod split;

use std::{any::Any, fmt, sync::Arc};

pub use fold::{AnyFold, CollectError, Collected};
use prepare::{NoState, StateCell};
pub use process::{BatchRun, Begins, Chunk, DoneTasks, IsPrepared, TaskFailure};
pub use running_index::RunningIndex;
use serde::Serialize;
use serde_json::value::RawValue;
pub use split::{AnySplit, BatchLimit, SplitStep};

use crate::{
    Job, JobError, Keep, Plan, Policy, TaskIndex, finite,
    wire::{Batch, Malformed, SPEC_MAX_BYTES},
};

/// One job, whatever its type.
pub trait AnyJob: fmt::Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> &'static str;

    /// The version of its code.
    fn version(&self) -> u32;

    /// What the ledger keeps of it.
    fn keep(&self) -> Keep;

    /// See [`Job::FOLDS_IN_ORDER`].
    fn folds_in_order(&self) -> bool;

    /// Returns whether tasks travel beside their outputs: the job wants them in
    /// [`Job::collect_with_task`], or they are kept.
    fn sends_tasks(&self, policy: &Policy) -> bool;

    /// The number of tasks that a slot keeps in flight, at least 1. See [`Job::IN_FLIGHT`].
    fn in_flight(&self) -> u32;

    /// Its parameters as they travel.
    ///
    /// # Errors
    /// If they cannot be encoded, contain a float that is not finite, or are larger than
    /// [`SPEC_MAX_BYTES`].
    fn spec(&self) -> Result<Box<RawValue>, JobError>;

    /// See [`Job::plan`].
    ///
    /// # Errors
    /// If the job refuses its parameters, panics over them, or plans more tasks than [`TaskIndex::LIMIT`].
    fn plan(&self) -> Result<Plan, JobError>;

    /// See [`Job::split_from`]; tasks come in packs.
    ///
    /// # Errors
    /// If the job panics before it gives its first task.
    fn split_from(&self, index: TaskIndex) -> Result<Box<dyn AnySplit + '_>, JobError>;

    /// Opens the job's state if no batch has done so, see [`Job::prepare`], and runs the batch's
    /// tasks in order, or [several at a time](Job::IN_FLIGHT), on the calling thread, until they
    /// have all run, the job is stopped or the run is halted; returns how many ran to an outcome.
    /// Outcomes are handed on through `run`. None run if [`BatchRun::unprepared`] says why.
    ///
    /// # Errors
    /// If the batch does not have as many tasks as it says; nothing was run then.
    fn process_batch(&self, batch: &Batch<'_>, run: &mut BatchRun<'_>) -> Result<u32, Malformed>;

    /// The report so far, to fold further outputs into; a new one without `saved`.
    ///
    /// # Errors
    /// If what was saved does not decode as this job's report.
    fn fold(self: Arc<Self>, saved: Option<&RawValue>) -> Result<Box<dyn AnyFold>, JobError>;
}

/// A job on its way to the roles.
#[must_use]
pub fn erase<J: Job>(job: J) -> Arc<dyn AnyJob> {
    erase_shared(Arc::new(job))
}

/// A job on its way to the roles, which its owner keeps as well.
#[must_use]
pub fn erase_shared<J: Job>(job: Arc<J>) -> Arc<dyn AnyJob> {
    Arc::new(Erased(job, StateCell::default()))
}

/// Encodes a job's parameters.
///
/// # Errors
/// If they do not encode as JSON, or contain a float that is not finite.
pub(crate) fn encode_spec<J: Job>(job: &J) -> Result<Box<RawValue>, JobError> {
    let spec = serde_json::value::to_raw_value(job)?;
    finite::check("spec", job, spec.get().as_bytes())?;
    Ok(spec)
}

/// Reads a job from its parameters as they travel.
pub(crate) fn open<J: Job>(spec: &RawValue) -> Result<Arc<dyn AnyJob>, JobError> {
    let why = match catch(|| serde_json::from_str::<J>(spec.get())) {
        Ok(Ok(job)) => return Ok(erase(job)),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {panic}"),
    };
    Err(JobError::new(format_args!("the spec {} does not fit kind {}: {why}", clip(spec.get()), J::KIND)))
}

/// A job, and the state that its tasks share in this process.
struct Erased<J>(Arc<J>, StateCell);

impl<J: Job> fmt::Debug for Erased<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", J::KIND)
    }
}

impl<J: Job> AnyJob for Erased<J> {
    fn kind(&self) -> &'static str {
        J::KIND
    }

    fn version(&self) -> u32 {
        J::VERSION
    }

    fn keep(&self) -> Keep {
        if J::FOLDS_IN_ORDER { Keep::Outputs } else { J::KEEP }
    }

    fn folds_in_order(&self) -> bool {
        J::FOLDS_IN_ORDER
    }

    fn sends_tasks(&self, policy: &Policy) -> bool {
        process::sends_tasks::<J>(policy)
    }

    fn in_flight(&self) -> u32 {
        J::IN_FLIGHT.max(1)
    }

    fn spec(&self) -> Result<Box<RawValue>, JobError> {
        let spec = encode_spec(&*self.0)?;
        if spec.get().len() > SPEC_MAX_BYTES {
            return Err(JobError::new(format_args!(
                "the job's parameters take {} bytes, more than the {SPEC_MAX_BYTES} that travel with every batch \
                 (hint: put large data into the tasks, or where every worker can read it)",
                spec.get().len()
            )));
        }
        Ok(spec)
    }

    fn plan(&self) -> Result<Plan, JobError> {
        let plan = catch(|| self.0.plan())
            .unwrap_or_else(|panic| Err(JobError::new(format_args!("plan panicked: {panic}"))))?;
        match plan.tasks {
            Some(tasks) if tasks > TaskIndex::LIMIT => Err(JobError::new(format_args!(
                "{tasks} tasks are more than can be numbered, expected at most {} (hint: make each task larger)",
                TaskIndex::LIMIT
            ))),
            _ => Ok(plan),
        }
    }

    fn split_from(&self, index: TaskIndex) -> Result<Box<dyn AnySplit + '_>, JobError> {
        begin(index, || self.0.split_from(index))
    }

    fn process_batch(&self, batch: &Batch<'_>, run: &mut BatchRun<'_>) -> Result<u32, Malformed> {
        process::process_batch(&*self.0, &self.1, batch, run)
    }

    fn fold(self: Arc<Self>, saved: Option<&RawValue>) -> Result<Box<dyn AnyFold>, JobError> {
        let report = match saved {
            None => J::Report::default(),
            Some(saved) => serde_json::from_str(saved.get()).map_err(|error| {
                JobError::new(format_args!(
                    "the saved report {} does not fit kind {}: {error}",
                    clip(saved.get()),
                    J::KIND
                ))
            })?,
        };
        Ok(Box::new(fold::Fold { job: self, report }))
    }
}

/// The split of a job that has not travelled.
pub(crate) fn split<J: Job>(job: &J) -> Result<Box<dyn AnySplit + '_>, JobError> {
    begin(TaskIndex(0), || job.split())
}

fn begin<'a, T: Serialize, I>(
    index: TaskIndex,
    tasks: impl FnOnce() -> I,
) -> Result<Box<dyn AnySplit + 'a>, JobError>
where
    I: Iterator<Item = Result<T, JobError>> + Send + 'a,
{
    match catch(tasks) {
        Ok(tasks) => Ok(Box::new(split::Split::new(tasks, index))),
        Err(panic) => Err(JobError::new(format_args!("split failed before task {index}: panic: {panic}"))),
    }
}

/// Runs user code; a panic becomes its text.
fn catch<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(code)).map_err(|panic| panic_text(&*panic))
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).into()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "(a value that is no text)".into()
    }
}

/// The beginning of a JSON text, for errors.
fn clip(json: &str) -> String {
    const SHOWN: usize = 120;
    match json.char_indices().nth(SHOWN) {
        None => json.into(),
        Some((end, _)) => format!("{}…", &json[..end]),
    }
}
