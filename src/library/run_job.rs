//! Running a whole job in the calling process.

use std::{num::NonZeroU16, sync::Arc, thread, time::Duration};

use gristmill_ledger::LedgerLocation;
use gristmill_producer::{Producer, SubmitOptions};
use gristmill_shared::{
    AnyJob, FailFast, Job, Lane, Outcome, Policy, PolicyOverrides, Registry, Transport, WorkerId,
    erase_shared,
    memory::MemoryTransport,
    panic_text,
    wire::{BATCH_MAX_TASKS, Finished},
};
use gristmill_sink::{Sink, SinkConfig};
use gristmill_worker::Worker;
use tokio::runtime::Builder;

use super::{Error, Pipeline, pipeline::PipelineShutdown};
use crate::{build_id::build_id, ledger_store::open_ledger};

/// The number of threads that move messages. Tasks, `split` and `collect` have threads of their
/// own.
const RUNTIME_THREADS: usize = 2;
/// The grace for running tasks after the job's end; then their threads are abandoned. A task that
/// calls `cx.check()` ends at once.
const RUN_STOP_GRACE: Duration = Duration::from_secs(2);

/// The delays before retries in one process, in milliseconds: a server that is down is given up
/// after 17 s, instead of the 11 minutes that a fleet allows.
const RUN_RETRY_DELAYS_MS: [u64; 4] = [1_000, 1_000, 5_000, 10_000];

/// Returns the policy of a job in one process whose kind chooses nothing.
pub(crate) fn run_policy() -> Policy {
    Policy { retry_delays_ms: RUN_RETRY_DELAYS_MS.to_vec(), ..Policy::default() }
}

/// Options of [`run`].
///
/// ```
/// use std::time::Duration;
///
/// let options = gristmill::RunOptions::default().slots(4).max_attempts(1);
/// let options = options.task_timeout(Duration::from_secs(30));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunOptions {
    /// The number of tasks that run at a time, each on a thread of its own. Defaults to one per
    /// processor.
    pub slots: Option<NonZeroU16>,
    /// The stated retry policy and limits of tasks. The rest is the kind's choice
    /// ([`Job::policy`]), or else that of `gristmill run`.
    pub policy: PolicyOverrides,
    /// The number of tasks in a batch, 1 to 10,000. By default it follows from the measured
    /// duration of tasks.
    pub batch: Option<u32>,
}

impl RunOptions {
    /// Sets the number of tasks that run at a time; 0 means one per processor.
    #[must_use]
    pub fn slots(self, slots: u16) -> Self {
        Self { slots: NonZeroU16::new(slots), ..self }
    }

    /// Sets the number of failed attempts after which a task has failed for good; 0 counts as 1.
    #[must_use]
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.policy = self.policy.max_attempts(max_attempts);
        self
    }

    /// Sets the delays before a failed task's second, third, … attempt; the last one repeats. An
    /// empty list means 1 s, 10 s, 1 min and 10 min.
    #[must_use]
    pub fn retry_delays(mut self, delays: &[Duration]) -> Self {
        let millis = |delay: &Duration| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.policy = self.policy.retry_delays_ms(delays.iter().map(millis).collect::<Vec<_>>());
        self
    }

    /// Sets the time limit of an attempt, in milliseconds and at least one. A longer attempt fails.
    #[must_use]
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.policy = self.policy.task_timeout(limit);
        self
    }

    /// Ends the job when `limit` tasks, or that share of all, have failed for good.
    #[must_use]
    pub fn fail_fast(mut self, limit: FailFast) -> Self {
        self.policy = self.policy.fail_fast(limit);
        self
    }

    /// Sets the number of tasks in a batch, clamped to 1 to 10,000.
    #[must_use]
    pub fn batch(self, tasks: u32) -> Self {
        Self { batch: Some(tasks.clamp(1, BATCH_MAX_TASKS)), ..self }
    }
}

/// Runs a whole job in this process, on threads of its own, and returns its outcome, like
/// `gristmill run`. No broker, file or command line is needed.
///
/// The job's tasks are spread over the slots, retried if they fail, and counted exactly once.
/// `process`, `split` and `collect` get the very value that is passed, including fields that are
/// `#[serde(skip)]`. Tasks and outputs are encoded as JSON, so a task should take about 10 µs or
/// more; the batch size follows from that.
///
/// The job is a value, or an [`Arc`] if the caller keeps it: then name its type, `run::<MyJob>(arc,
/// options)`.
///
/// The call blocks until the job has ended. From async code, call it within
/// `tokio::task::spawn_blocking`. When it returns, no thread of the run is left, except those of
/// tasks that still run 2 s after the job's early end.
///
/// # Errors
/// [`Error`] if the job refuses its parameters or cannot be split. Failed tasks and an unsuccessful
/// search are no errors: see [`Outcome::into_answer`].
///
/// # Examples
///
/// ```
/// use gristmill::{RunOptions, prelude::*};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SumOfSquares { limit: u64 }
///
/// impl Job for SumOfSquares {
///     const KIND: &'static str = "sum-of-squares";
///     type Task = u64;
///     type Output = u64;
///     type Report = u64;
///
///     fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
///         (0..self.limit).map(Ok)
///     }
///     fn process(&self, n: u64, _: &TaskContext) -> Result<u64, TaskError> { Ok(n * n) }
///     fn collect(&self, sum: &mut u64, _: TaskIndex, square: u64) -> ControlFlow<()> {
///         *sum += square;
///         ControlFlow::Continue(())
///     }
/// }
///
/// let outcome = gristmill::run(SumOfSquares { limit: 1_000 }, RunOptions::default())?;
/// assert_eq!(outcome.into_answer()?, 332_833_500);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run<J: Job>(job: impl Into<Arc<J>>, options: RunOptions) -> Result<Outcome<J::Report>, Error> {
    let job = erase_shared::<J>(job.into());
    // A separate thread, since a runtime may be running on this one.
    let thread = thread::Builder::new().name("gristmill-run".into());
    let running = thread.spawn(move || run_on_runtime(job, options)).map_err(Error::Thread)?;
    let finished = running.join().unwrap_or_else(|panic| Err(Error::Defect(panic_text(&*panic))))?;
    Ok(finished.outcome::<J>()?)
}

fn run_on_runtime(job: Arc<dyn AnyJob>, options: RunOptions) -> Result<Finished, Error> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_time()
        .build()
        .map_err(Error::Thread)?;
    let finished = runtime.block_on(run_in_memory(job, options));
    runtime.shutdown_timeout(RUN_STOP_GRACE);
    finished
}

async fn run_in_memory(job: Arc<dyn AnyJob>, options: RunOptions) -> Result<Finished, Error> {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let registry = Registry::with_job(Arc::clone(&job))?;
    let app = WorkerId::generate("run");
    let config = SinkConfig::new(registry.clone(), Lane::default(), app.clone());
    let sink = Sink::open(config, open_ledger(LedgerLocation::Memory)?)?;
    let sink = sink.claim(Arc::clone(&transport)).await?;
    let slots = options.slots.unwrap_or_else(processor_count);
    let worker = Worker::new(registry, app.clone())
        .build(build_id())
        .slots(slots)
        .grace(RUN_STOP_GRACE)
        .stop_grace(RUN_STOP_GRACE);
    let pipeline = Pipeline { transport: Arc::clone(&transport), sink, worker };
    let submitting = async {
        let submit = SubmitOptions {
            policy: options.policy,
            default_policy: run_policy(),
            batch: options.batch,
            ..SubmitOptions::default()
        };
        let producer = Producer::new(Arc::clone(&transport), app.as_str()).build(build_id());
        let (submission, mut watch) = producer.open_watched(job, submit).await?;
        let sending = async { submission.send().await.map_err(Error::from) };
        let (_, finished) =
            futures::try_join!(sending, async { watch.finished().await.map_err(Error::from) })?;
        Ok::<_, Error>(finished)
    };
    let finished = pipeline.serve(PipelineShutdown::Graceful, submitting).await;
    transport.close().await;
    finished
}

/// Returns the number of processors that this process may use.
pub(crate) fn processor_count() -> NonZeroU16 {
    let found = thread::available_parallelism().map_or(1, usize::from);
    NonZeroU16::new(u16::try_from(found).unwrap_or(u16::MAX)).unwrap_or(NonZeroU16::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the waits of a task that fails its first four tries, in seconds.
    fn waits(options: &RunOptions) -> [u64; 4] {
        let policy = options.policy.clone().apply(run_policy());
        [1, 2, 3, 4].map(|failures| policy.retry_delay(failures).as_secs())
    }

    #[test]
    fn default_delays_match_command() {
        assert_eq!(waits(&RunOptions::default()), [1, 1, 5, 10]);
        let options = RunOptions::default().retry_delays(&[Duration::from_secs(2)]);
        assert_eq!(waits(&options), [2, 2, 2, 2]);
        assert_eq!(waits(&RunOptions::default().retry_delays(&[])), [1, 10, 60, 600]);
    }
}
