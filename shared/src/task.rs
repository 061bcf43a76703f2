//! One task from the inside: its context, and how it may fail.

use std::{
    cell::OnceCell,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::{runtime::Runtime, sync::Notify};

use crate::{
    JobId, TaskIndex,
    wire::{clip_reason, encoded_len},
};

/// What [`Job::process`](crate::Job::process) knows of the task it runs.
#[derive(Debug, Clone)]
pub struct TaskContext {
    job: JobId,
    index: TaskIndex,
    attempt: u32,
    stop: StopSignal,
    /// Given when the run's batch was taken from its thread.
    revoked: StopSignal,
    deadline: Option<Instant>,
}

impl TaskContext {
    /// For the first task of a batch. `failures` is how often the task has failed before.
    #[must_use]
    pub fn new(job: JobId, index: TaskIndex, failures: u32, stop: StopSignal) -> Self {
        let revoked = StopSignal::new();
        Self { job, index, attempt: failures.saturating_add(1), stop, revoked, deadline: None }
    }

    /// The same context with a second stop signal, for a run whose batch is taken from its thread.
    /// The outcome is discarded then, so the task ends as if the job were stopped.
    #[must_use]
    pub fn with_revoked(self, revoked: StopSignal) -> Self {
        Self { revoked, ..self }
    }

    /// The same context with a deadline, for tests of a job.
    #[must_use]
    pub fn with_deadline(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// The same context, moved to another task of the batch.
    pub(crate) fn move_to(&mut self, index: TaskIndex, deadline: Option<Instant>) {
        self.index = index;
        self.deadline = deadline;
    }

    /// The job. With [`TaskContext::index`] an idempotency key for side effects, since a task may run twice.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The task's index in its job.
    #[must_use]
    pub fn index(&self) -> TaskIndex {
        self.index
    }

    /// 1 for the first try, and one more for each try that ended in an error.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Call this now and then in long tasks: a stopped job or a passed deadline ends the task here.
    ///
    /// # Errors
    /// Pass it on with `?`; it does not count as a failure of the task if the job was stopped.
    pub fn check(&self) -> Result<(), TaskError> {
        if self.stop.is_stopped() || self.revoked.is_stopped() {
            return Err(TaskError::stopped());
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(TaskError(Trouble::TimedOut)),
            _ => Ok(()),
        }
    }

    /// The time at which the task fails, if the job has a time limit for its tasks.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Waits until [`TaskContext::check`] fails because the task must stop. The deadline does not
    /// end the wait. Cancel safe.
    pub async fn stopped(&self) {
        tokio::select! {
            () = self.stop.stopped() => {}
            () = self.revoked.stopped() => {}
        }
    }

    /// Runs async code to its end, on a runtime of this thread's own that carries no broker traffic.
    ///
    /// # Panics
    /// If called from within async code, or if the operating system gives no runtime; both count as an error of
    /// the task.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        thread_local! {
            static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
        }
        RUNTIME.with(|runtime| {
            runtime
                .get_or_init(|| {
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("a current-thread runtime needs only a few file descriptors")
                })
                .block_on(future)
        })
    }
}

/// Why a task gave no output.
///
/// It deliberately is no `std::error::Error`, so that `?` turns any error into one.
pub struct TaskError(Trouble);

/// What a [`TaskError`] means for the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Try again later, with this reason.
    Failed(String),
    /// Never again, with this reason.
    Rejected(String),
    /// The job was stopped; no outcome.
    Stopped,
    /// The deadline passed; counts as a failure.
    TimedOut,
}

impl Trouble {
    /// With a reason of a length that travels.
    pub(crate) fn clipped(self) -> Self {
        match self {
            Self::Failed(reason) => Self::Failed(clip_reason(&reason).into_owned()),
            Self::Rejected(reason) => Self::Rejected(clip_reason(&reason).into_owned()),
            Self::Stopped | Self::TimedOut => self,
        }
    }

    /// How many bytes the reason takes on the wire, where some characters take six.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::Failed(reason) | Self::Rejected(reason) => encoded_len(reason),
            Self::Stopped | Self::TimedOut => 0,
        }
    }
}

impl TaskError {
    /// This task will never succeed: record it as failed at once.
    #[must_use]
    pub fn reject(why: impl fmt::Display) -> Self {
        Self(Trouble::Rejected(why.to_string()))
    }

    /// This try failed; another one may not. What `?` does with any error.
    #[must_use]
    pub fn failed(why: impl fmt::Display) -> Self {
        Self(Trouble::Failed(why.to_string()))
    }

    pub(crate) fn stopped() -> Self {
        Self(Trouble::Stopped)
    }

    /// What it means for the task.
    #[must_use]
    pub fn into_trouble(self) -> Trouble {
        self.0
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskError({:?})", self.0)
    }
}

impl<E: std::error::Error> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self(Trouble::Failed(crate::error_chain(&error)))
    }
}

/// Tells the running tasks of a job that it was stopped. Cheap to clone and to ask; once stopped, always stopped.
#[derive(Clone, Default)]
pub struct StopSignal(Arc<Signal>);

#[derive(Default)]
struct Signal {
    given: AtomicBool,
    wake: Notify,
}

impl StopSignal {
    /// A signal that nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal to every clone.
    pub fn stop(&self) {
        self.0.given.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.given.load(Ordering::Acquire)
    }

    /// Waits until the signal is given. Cancel safe.
    pub async fn stopped(&self) {
        let mut wake = std::pin::pin!(self.0.wake.notified());
        wake.as_mut().enable(); // from here on no signal is missed
        if !self.is_stopped() {
            wake.await;
        }
    }
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopSignal({})", self.is_stopped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_sees_a_stop_and_a_deadline() {
        let stop = StopSignal::new();
        let mut cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop.clone());
        assert!(cx.check().is_ok());
        cx.move_to(TaskIndex(1), Some(Instant::now()));
        assert_eq!(cx.check().unwrap_err().into_trouble(), Trouble::TimedOut);
        stop.stop();
        assert_eq!(cx.check().unwrap_err().into_trouble(), Trouble::Stopped);
    }

    #[tokio::test]
    async fn a_revoked_run_stops_its_task() {
        let revoked = StopSignal::new();
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        let cx = cx.with_revoked(revoked.clone());
        assert!(cx.check().is_ok());
        tokio::join!(cx.stopped(), async { revoked.stop() });
        assert_eq!(cx.check().unwrap_err().into_trouble(), Trouble::Stopped);
    }

    #[tokio::test]
    async fn a_stop_wakes_whoever_waits_and_whoever_comes_later() {
        let stop = StopSignal::new();
        tokio::join!(stop.stopped(), async { stop.clone().stop() });
        stop.stopped().await;
    }

    #[test]
    fn any_error_becomes_a_failure_with_its_causes() {
        fn task() -> Result<u32, TaskError> {
            Ok("x".parse::<u32>()?)
        }
        let Trouble::Failed(reason) = task().unwrap_err().into_trouble() else { panic!("not a failure") };
        assert_eq!(reason, "invalid digit found in string");
    }

    #[test]
    fn async_code_runs_to_its_end() {
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 2, StopSignal::new());
        assert_eq!(cx.attempt(), 3);
        assert_eq!(cx.block_on(async { 7 }), 7);
    }
}
