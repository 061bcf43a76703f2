//! Jobs without their type parameters, as the roles use them.
//!
//! The type is erased per **batch**, never per task: one virtual call, then a typed loop over the
//! tasks.

mod batch_run;
mod fold;
mod in_flight;
mod prepare;
mod process;
mod running_index;
mod split;

use std::{any::Any, fmt, sync::Arc};

pub use batch_run::{BatchRun, Chunk, DoneTasks, PreparedHook, TaskFailure, TaskStartHook};
pub use fold::{AnyFold, CollectError, Collected};
use prepare::{PrepareError, StateCell};
pub use running_index::RunningIndex;
use serde::Serialize;
use serde_json::value::RawValue;
pub use split::{AnySplit, BatchLimit, SplitStep};

use crate::{
    Job, JobError, Keep, LocalInput, Plan, Policy, TaskIndex, finite,
    wire::{Batch, Malformed, SPEC_MAX_BYTES},
};

/// A job of any type.
pub trait AnyJob: fmt::Debug + Send + Sync {
    /// Returns the kind of the job.
    fn kind(&self) -> &'static str;

    /// Returns the version of the job's code.
    fn version(&self) -> u32;

    /// Returns the part of the job that the ledger keeps, unless its policy says otherwise: see
    /// [`Job::keep`]. A job that folds in order keeps its outputs at least.
    fn keep(&self) -> Keep;

    /// Calls [`Job::policy`]. The result keeps nothing of its own: that is [`AnyJob::keep`].
    ///
    /// # Errors
    /// If the job panics.
    fn policy(&self, defaults: Policy) -> Result<Policy, JobError>;

    /// Calls [`Job::local`] and checks on a copy that [`Job::with_local`] takes the values. Returns
    /// `None` if there are none.
    ///
    /// # Errors
    /// If either fails or panics, or the parameters do not decode.
    fn local(&self) -> Result<Option<Box<RawValue>>, JobError>;

    /// Returns the job with these values of [`Job::local`], as [`Job::with_local`] restores them.
    ///
    /// # Errors
    /// If the job refuses or panics, or if it is shared and has other values.
    fn with_local(self: Arc<Self>, local: &RawValue) -> Result<Arc<dyn AnyJob>, JobError>;

    /// Returns [`Job::FOLDS_IN_ORDER`].
    fn folds_in_order(&self) -> bool;

    /// True if tasks travel beside their outputs: the job needs them in [`Job::collect_with_task`],
    /// or the ledger keeps them.
    fn sends_tasks(&self, policy: &Policy) -> bool;

    /// Returns the number of tasks that a slot keeps in flight, at least 1. See [`Job::IN_FLIGHT`].
    fn in_flight(&self) -> u32;

    /// Encodes the parameters as they travel.
    ///
    /// # Errors
    /// If they cannot be encoded, contain a float that is not finite, or are larger than
    /// [`SPEC_MAX_BYTES`].
    fn spec(&self) -> Result<Box<RawValue>, JobError>;

    /// Calls [`Job::plan`].
    ///
    /// # Errors
    /// If the job refuses its parameters, panics, or plans more tasks than [`TaskIndex::LIMIT`].
    fn plan(&self) -> Result<Plan, JobError>;

    /// Calls [`Job::split_from`] and returns a splitter that packs the tasks.
    ///
    /// # Errors
    /// If the job panics before it yields its first task.
    fn split_from(&self, index: TaskIndex) -> Result<Box<dyn AnySplit + '_>, JobError>;

    /// Opens the job's state if no batch has done so, see [`Job::prepare`], and runs the batch's
    /// tasks in order, or [several at a time](Job::IN_FLIGHT), on the calling thread. Ends when all
    /// tasks have run, the job is stopped or the run is halted. Returns the number of tasks with an
    /// outcome. Outcomes are emitted through `run`. No task has run if
    /// [`BatchRun::unprepared_reason`] returns a reason.
    ///
    /// # Errors
    /// If the number of tasks differs from the batch's count; no task has run then.
    fn process_batch(&self, batch: &Batch<'_>, run: &mut BatchRun<'_>) -> Result<u32, Malformed>;

    /// Returns a fold that continues the report `saved`, or that starts with an empty report.
    ///
    /// # Errors
    /// If `saved` does not decode as this job's report.
    fn fold(self: Arc<Self>, saved: Option<&RawValue>) -> Result<Box<dyn AnyFold>, JobError>;
}

/// Erases the type of a job, for the roles.
#[must_use]
pub fn erase<J: Job>(job: J) -> Arc<dyn AnyJob> {
    erase_shared(Arc::new(job))
}

/// Erases the type of a job that its owner keeps as well.
#[must_use]
pub fn erase_shared<J: Job>(job: Arc<J>) -> Arc<dyn AnyJob> {
    Arc::new(ErasedJob(job, StateCell::default()))
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

/// Decodes a job from its parameters as they travel.
pub(crate) fn open<J: Job>(spec: &RawValue) -> Result<Arc<dyn AnyJob>, JobError> {
    decode_spec::<J>(spec).map(erase)
}

fn decode_spec<J: Job>(spec: &RawValue) -> Result<J, JobError> {
    let why = match catch(|| serde_json::from_str::<J>(spec.get())) {
        Ok(Ok(job)) => return Ok(job),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {panic}"),
    };
    Err(JobError::new(format_args!("the spec {} does not fit kind {}: {why}", clip(spec.get()), J::KIND)))
}

/// A job with the state that its tasks share in this process.
struct ErasedJob<J>(Arc<J>, StateCell);

impl<J: Job> fmt::Debug for ErasedJob<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", J::KIND)
    }
}

impl<J: Job> AnyJob for ErasedJob<J> {
    fn kind(&self) -> &'static str {
        J::KIND
    }

    fn version(&self) -> u32 {
        J::VERSION
    }

    fn keep(&self) -> Keep {
        let keep = process::own_keep(&*self.0);
        if J::FOLDS_IN_ORDER { keep.max(Keep::Outputs) } else { keep }
    }

    fn policy(&self, defaults: Policy) -> Result<Policy, JobError> {
        let policy = call("policy", || Ok(self.0.policy(defaults)))?;
        Ok(Policy { max_attempts: policy.max_attempts.max(1), keep: None, ..policy })
    }

    fn local(&self) -> Result<Option<Box<RawValue>>, JobError> {
        let Some(local) = call("local", || self.0.local())?.into_json() else { return Ok(None) };
        restore_local(&mut decode_spec::<J>(&encode_spec(&*self.0)?)?, &local)?;
        Ok(Some(local))
    }

    fn with_local(self: Arc<Self>, local: &RawValue) -> Result<Arc<dyn AnyJob>, JobError> {
        let shared = match Arc::try_unwrap(self) {
            Ok(Self(job, state)) => match Arc::try_unwrap(job) {
                Ok(mut job) => {
                    restore_local(&mut job, local)?;
                    return Ok(Arc::new(Self(Arc::new(job), state)));
                }
                Err(job) => Arc::new(Self(job, state)),
            },
            Err(shared) => shared,
        };
        // Others hold the job, so it cannot change. It may be the very value that was submitted.
        match shared.local()? {
            Some(own) if own.get() == local.get() => Ok(shared),
            _ => Err(JobError::new(format_args!(
                "a job of kind {} is shared, and its local input is not {} (hint: an opener must return a new job for \
                 each spec)",
                J::KIND,
                clip(local.get())
            ))),
        }
    }

    fn folds_in_order(&self) -> bool {
        J::FOLDS_IN_ORDER
    }

    fn sends_tasks(&self, policy: &Policy) -> bool {
        process::sends_tasks(&*self.0, policy)
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
        let plan = call("plan", || self.0.plan())?;
        match plan.tasks {
            Some(tasks) if tasks > TaskIndex::LIMIT => Err(JobError::new(format_args!(
                "{tasks} tasks are more than can be numbered, expected at most {} (hint: make each task larger)",
                TaskIndex::LIMIT
            ))),
            _ => Ok(plan),
        }
    }

    fn split_from(&self, index: TaskIndex) -> Result<Box<dyn AnySplit + '_>, JobError> {
        start_split(index, || self.0.split_from(index))
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
        Ok(Box::new(fold::TypedFold { job: self, report }))
    }
}

/// Splits a job that has not travelled.
pub(crate) fn split<J: Job>(job: &J) -> Result<Box<dyn AnySplit + '_>, JobError> {
    start_split(TaskIndex(0), || job.split())
}

fn start_split<'a, T: Serialize, I>(
    index: TaskIndex,
    tasks: impl FnOnce() -> I,
) -> Result<Box<dyn AnySplit + 'a>, JobError>
where
    I: Iterator<Item = Result<T, JobError>> + Send + 'a,
{
    match catch(tasks) {
        Ok(tasks) => Ok(Box::new(split::TypedSplit::new(tasks, index))),
        Err(panic) => Err(JobError::new(format_args!("split failed before task {index}: panic: {panic}"))),
    }
}

fn restore_local<J: Job>(job: &mut J, local: &RawValue) -> Result<(), JobError> {
    let local = LocalInput::from_json(local);
    call("with_local", || job.with_local(&local))
}

/// Runs the job's method `name` and turns a panic into an error.
fn call<T>(name: &str, code: impl FnOnce() -> Result<T, JobError>) -> Result<T, JobError> {
    catch(code).unwrap_or_else(|panic| Err(JobError::new(format_args!("{name} panicked: {panic}"))))
}

/// Runs user code and turns a panic into its text.
fn catch<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(code)).map_err(|panic| panic_text(&*panic))
}

/// Returns the text of a panic.
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

/// Returns the beginning of a JSON text, for errors.
fn clip(json: &str) -> String {
    const CLIPPED_MAX_CHARS: usize = 120;
    match json.char_indices().nth(CLIPPED_MAX_CHARS) {
        None => json.into(),
        Some((end, _)) => format!("{}…", &json[..end]),
    }
}
