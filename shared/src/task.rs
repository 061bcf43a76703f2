//! The context of a running task, its errors and its stop signal.

use std::{
    fmt,
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep_until};

use crate::{
    JobId, State, TaskIndex,
    task_runtime::task_runtime,
    wire::{clip_reason, encoded_len},
};

/// The context of a running task, for [`Job::process`](crate::Job::process).
#[derive(Debug, Clone)]
pub struct TaskContext {
    job: JobId,
    index: TaskIndex,
    attempt: u32,
    stop: StopSignal,
    /// Given when the batch of the run is revoked from its thread.
    revoked: StopSignal,
    deadline: Option<Instant>,
    slot: u32,
    state: State,
}

impl TaskContext {
    /// Makes the context of the first task of a batch. `failures` is the number of failed attempts
    /// so far.
    #[must_use]
    pub fn new(job: JobId, index: TaskIndex, failures: u32, stop: StopSignal) -> Self {
        let attempt = failures.saturating_add(1);
        let revoked = StopSignal::new();
        Self { job, index, attempt, stop, revoked, deadline: None, slot: 0, state: State::none() }
    }

    /// Sets the state, for tests that call [`Job::process`](crate::Job::process) directly.
    #[must_use]
    pub fn with_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Sets the job's state for the tasks of the batch.
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    /// Returns the value that [`Job::prepare`](crate::Job::prepare) opened in this worker. All
    /// slots that run tasks of the job share it.
    ///
    /// # Errors
    /// If the job has no state, or one of another type. Pass it on with `?`: the task fails for
    /// good.
    pub fn state<T: 'static>(&self) -> Result<&T, TaskError> {
        self.state.get()
    }

    /// Adds a second stop signal, which revokes the run's batch from its thread. The outcome is
    /// discarded then, so the task ends as if the job were stopped.
    #[must_use]
    pub fn with_revoked(self, revoked: StopSignal) -> Self {
        Self { revoked, ..self }
    }

    /// Sets a deadline, for tests of a job.
    #[must_use]
    pub fn with_deadline(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Sets the number of the slot.
    #[must_use]
    pub fn with_slot(self, slot: u32) -> Self {
        Self { slot, ..self }
    }

    /// Moves the context to another task of the batch.
    pub(crate) fn move_to(&mut self, index: TaskIndex, deadline: Option<Instant>) {
        self.index = index;
        self.deadline = deadline;
    }

    /// Returns the job. Together with [`TaskContext::index`] it is an idempotency key for side
    /// effects, because a task may run twice.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Returns the task's index in its job.
    #[must_use]
    pub fn index(&self) -> TaskIndex {
        self.index
    }

    /// Returns 1 for the first attempt, and one more for each attempt that ended in an error.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the number of the slot that runs the task, from 0 to one less than the slots of the
    /// worker. With `--isolate` it is the number of the worker's slot, in each of its children.
    ///
    /// Tasks of [`Job::process_async`](crate::Job::process_async) share a slot while they are in
    /// flight. A task that has lost its slot, because it went on after its time limit or its job's
    /// stop, keeps the number beside the slot's next task.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Fails if the job is stopped or the deadline has passed. Long tasks call it regularly, so
    /// that they end early.
    ///
    /// # Errors
    /// Pass it on with `?`. It does not count as a failure of the task if the job was stopped.
    pub fn check(&self) -> Result<(), TaskError> {
        if self.stop.is_stopped() || self.revoked.is_stopped() {
            return Err(TaskError::stopped());
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(TaskError(FailureKind::TimedOut)),
            _ => Ok(()),
        }
    }

    /// Returns the time at which the task fails, if the job has a time limit for its tasks.
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

    /// Runs async code to its end, on a runtime that all slots of the worker share and that carries
    /// no broker traffic.
    ///
    /// The future is polled on the calling thread. Tasks that it spawns, and its sockets and
    /// timers, continue after it has ended, so that tasks may share a client. Timers and sockets
    /// must be made within the future: `cx.block_on(async { sleep(time).await })`.
    ///
    /// # Errors
    /// Returns the error of [`TaskContext::check`] when the job is stopped or the deadline passes;
    /// the future is dropped then. Also fails if it is called from within async code, or if the
    /// operating system gives no runtime.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, TaskError> {
        task_runtime()?.block_on(self.run_until_stopped(future))
    }

    /// Waits for `future`, at most until the job is stopped or the deadline passes; then the future
    /// is dropped.
    pub(crate) async fn run_until_stopped<F: Future>(&self, future: F) -> Result<F::Output, TaskError> {
        let overdue = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            output = future => Ok(output),
            () = self.stopped() => Err(TaskError::stopped()),
            () = overdue => Err(TaskError(FailureKind::TimedOut)),
        }
    }
}

/// The error of a task without an output.
///
/// The type deliberately does not implement `std::error::Error`, so that `?` converts any error
/// into it: those of the standard library and of `thiserror`, `anyhow::Error`, `Box<dyn Error +
/// Send + Sync>`, and texts. The reason holds only the text of the error and of its causes.
///
/// ```
/// use std::time::Duration;
/// use gristmill_shared::TaskError;
///
/// # fn get(_: &str) -> anyhow::Result<(u16, String)> { Ok((404, String::new())) }
/// fn page(url: &str) -> Result<String, TaskError> {
///     let (status, text) = get(url).map_err(|error| TaskError::from(error).context(url))?;
///     match status {
///         200 => Ok(text),
///         404 => Err(TaskError::reject("no such page")),
///         429 => {
///             let later = TaskError::retry_after(Duration::from_secs(30));
///             Err(later.context("too many requests"))
///         }
///         _ => Err(format!("status {status}"))?,
///     }
/// }
/// # assert!(page("http://localhost/").is_err());
/// ```
pub struct TaskError(FailureKind);

/// The consequence of a [`TaskError`] for the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureKind {
    /// The attempt failed for this reason; the task is tried again later.
    Failed(String),
    /// The task failed for good, for this reason.
    Rejected(String),
    /// The task does not decode as the kind's type, for this reason: it is invalid, or another
    /// build made it.
    Undecodable(String),
    /// The job was stopped; the task has no outcome.
    Stopped,
    /// The deadline passed. Counts as a failed attempt.
    TimedOut,
    /// The attempt failed for this reason; the task is tried again after this delay, which
    /// overrides the job's policy. Counts as a failed attempt.
    Delayed(String, Duration),
}

impl FailureKind {
    /// Clips the reason to the length that travels.
    pub(crate) fn clip(self) -> Self {
        match self {
            Self::Failed(reason) => Self::Failed(clip_reason(&reason).into_owned()),
            Self::Rejected(reason) => Self::Rejected(clip_reason(&reason).into_owned()),
            Self::Undecodable(reason) => Self::Undecodable(clip_reason(&reason).into_owned()),
            Self::Delayed(reason, delay) => Self::Delayed(clip_reason(&reason).into_owned(), delay),
            Self::Stopped | Self::TimedOut => self,
        }
    }

    /// Returns the size of the reason on the wire in bytes, where some characters take six.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::Failed(reason)
            | Self::Rejected(reason)
            | Self::Undecodable(reason)
            | Self::Delayed(reason, _) => encoded_len(reason),
            Self::Stopped | Self::TimedOut => 0,
        }
    }
}

impl TaskError {
    /// Makes an error that fails the task for good, without further attempts.
    #[must_use]
    pub fn reject(why: impl fmt::Display) -> Self {
        Self(FailureKind::Rejected(why.to_string()))
    }

    /// Makes an error that fails this attempt; later attempts may succeed. `?` converts any error
    /// this way.
    #[must_use]
    pub fn failed(why: impl fmt::Display) -> Self {
        Self(FailureKind::Failed(why.to_string()))
    }

    /// Makes an error that fails this attempt; the next one starts after `delay`, which replaces
    /// the job's own retry delays. The attempt counts like any other. The delay is rounded up to
    /// the whole second, and is at least 1 s and at most
    /// [`RETRY_DELAY_MAX`](crate::RETRY_DELAY_MAX).
    ///
    /// The reason is a standard text; [`TaskError::context`] adds to it.
    #[must_use]
    pub fn retry_after(delay: Duration) -> Self {
        Self(FailureKind::Delayed(format!("the task asks for a retry after {delay:?}"), delay))
    }

    /// Puts `text` and a colon before the reason, as in `reading the index: no such file`. Changes
    /// nothing else: a rejected task stays rejected, and a stop or a passed deadline has no reason.
    #[must_use]
    pub fn context(self, text: impl fmt::Display) -> Self {
        Self(match self.0 {
            FailureKind::Failed(reason) => FailureKind::Failed(format!("{text}: {reason}")),
            FailureKind::Rejected(reason) => FailureKind::Rejected(format!("{text}: {reason}")),
            FailureKind::Delayed(reason, delay) => FailureKind::Delayed(format!("{text}: {reason}"), delay),
            other @ (FailureKind::Stopped | FailureKind::TimedOut | FailureKind::Undecodable(_)) => other,
        })
    }

    pub(crate) fn from_kind(trouble: FailureKind) -> Self {
        Self(trouble)
    }

    pub(crate) fn stopped() -> Self {
        Self(FailureKind::Stopped)
    }

    pub(crate) fn undecodable(why: impl fmt::Display) -> Self {
        Self(FailureKind::Undecodable(why.to_string()))
    }

    /// True if the job was stopped, so that the task has no outcome.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self.0, FailureKind::Stopped)
    }

    /// Returns the consequence for the task.
    #[must_use]
    pub fn into_kind(self) -> FailureKind {
        self.0
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskError({:?})", self.0)
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self(FailureKind::Failed(crate::error_chain(&*error.into())))
    }
}

/// A one-shot signal that stops the running tasks of a job. Cheap to clone and to check; a given
/// signal stays given.
#[derive(Clone, Default)]
pub struct StopSignal(Arc<SignalState>);

#[derive(Default)]
struct SignalState {
    given: AtomicBool,
    wake: Notify,
}

impl StopSignal {
    /// Makes a signal that is not given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal to every clone.
    pub fn stop(&self) {
        self.0.given.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }

    /// True if the signal was given.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.given.load(Ordering::Acquire)
    }

    /// Waits until the signal is given. Cancel safe.
    pub async fn stopped(&self) {
        let mut wake = std::pin::pin!(self.0.wake.notified());
        wake.as_mut().enable(); // no signal is missed from here on
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
    fn check_sees_stop_and_deadline() {
        let stop = StopSignal::new();
        let mut cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop.clone());
        assert!(cx.check().is_ok());
        cx.move_to(TaskIndex(1), Some(Instant::now()));
        assert_eq!(cx.check().unwrap_err().into_kind(), FailureKind::TimedOut);
        stop.stop();
        assert_eq!(cx.check().unwrap_err().into_kind(), FailureKind::Stopped);
    }

    #[tokio::test]
    async fn revoked_run_stops_its_task() {
        let revoked = StopSignal::new();
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        let cx = cx.with_revoked(revoked.clone());
        assert!(cx.check().is_ok());
        tokio::join!(cx.stopped(), async { revoked.stop() });
        assert_eq!(cx.check().unwrap_err().into_kind(), FailureKind::Stopped);
    }

    #[tokio::test]
    async fn stop_wakes_current_and_later_waiters() {
        let stop = StopSignal::new();
        tokio::join!(stop.stopped(), async { stop.clone().stop() });
        stop.stopped().await;
    }

    #[test]
    fn any_error_becomes_a_failure() {
        fn task() -> Result<u32, TaskError> {
            Ok("x".parse::<u32>()?)
        }
        let FailureKind::Failed(reason) = task().unwrap_err().into_kind() else { panic!("not a failure") };
        assert_eq!(reason, "invalid digit found in string");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is gone")]
    struct DiskGone;

    #[test]
    fn question_mark_takes_every_error() {
        fn fails(how: u32) -> Result<(), TaskError> {
            let gone = Box::<dyn std::error::Error + Send + Sync>::from(DiskGone);
            match how {
                0 => Err(anyhow::Error::new(DiskGone).context("reading row 7"))?,
                1 => Err(gone)?,
                2 => Err("a text")?,
                3 => Err(String::from("a longer text"))?,
                _ => anyhow::Context::context(Err::<(), _>(DiskGone), "writing row 7")?,
            }
            Ok(())
        }
        let reasons: Vec<_> = (0..5).map(|how| fails(how).unwrap_err().into_kind()).collect();
        let expected = [
            "reading row 7: the disk is gone",
            "the disk is gone",
            "a text",
            "a longer text",
            "writing row 7: the disk is gone",
        ];
        assert_eq!(reasons, expected.map(|reason| FailureKind::Failed(reason.into())));
    }

    #[test]
    fn context_goes_before_the_reason() {
        let with_context = |error: TaskError| error.context("row 7").into_kind();
        assert_eq!(with_context(DiskGone.into()), FailureKind::Failed("row 7: the disk is gone".into()));
        assert_eq!(with_context(TaskError::reject("odd")), FailureKind::Rejected("row 7: odd".into()));
        assert_eq!(with_context(TaskError::stopped()), FailureKind::Stopped);
        let wait = Duration::from_secs(30);
        let reason = "row 7: the task asks for a retry after 30s";
        assert_eq!(with_context(TaskError::retry_after(wait)), FailureKind::Delayed(reason.into(), wait));
    }

    fn context(stop: StopSignal) -> TaskContext {
        TaskContext::new(JobId::generate(), TaskIndex(0), 2, stop)
    }

    #[test]
    fn block_on_returns_the_output() {
        let cx = context(StopSignal::new());
        assert_eq!(cx.attempt(), 3);
        assert_eq!(cx.block_on(async { 7 }).unwrap(), 7);
    }

    #[test]
    fn block_on_ends_at_stop_and_deadline() {
        let stop = StopSignal::new();
        let mut cx = context(stop.clone());
        let never = |cx: &TaskContext| cx.block_on(pending::<()>()).unwrap_err().into_kind();
        cx.move_to(TaskIndex(0), Some(Instant::now() + std::time::Duration::from_millis(20)));
        assert_eq!(never(&cx), FailureKind::TimedOut);
        assert!(cx.deadline() <= Some(Instant::now()), "it ended before its deadline");
        cx.move_to(TaskIndex(0), None);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| never(&cx));
            stop.stop();
            assert_eq!(waiting.join().unwrap(), FailureKind::Stopped);
        });
    }

    #[tokio::test]
    async fn block_on_refuses_async_callers() {
        let error = context(StopSignal::new()).block_on(async { 7 }).unwrap_err();
        let FailureKind::Rejected(why) = error.into_kind() else { panic!("it would be tried again") };
        assert!(why.contains("await the future instead"), "{why}");
    }
}
