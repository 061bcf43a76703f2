//! One task from the inside: its context, and how it may fail.

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
    state: State,
}

impl TaskContext {
    /// For the first task of a batch. `failures` is how often the task has failed before.
    #[must_use]
    pub fn new(job: JobId, index: TaskIndex, failures: u32, stop: StopSignal) -> Self {
        let attempt = failures.saturating_add(1);
        let revoked = StopSignal::new();
        Self { job, index, attempt, stop, revoked, deadline: None, state: State::none() }
    }

    /// Adds a state, for tests that call [`Job::process`](crate::Job::process) themselves.
    #[must_use]
    pub fn with_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Gives the tasks of the batch their job's state.
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    /// Returns the value that [`Job::prepare`](crate::Job::prepare) opened in this worker. All
    /// slots that run tasks of the job share it.
    ///
    /// # Errors
    /// If the job prepares nothing of this type. Pass it on with `?`: the task has failed for good.
    pub fn state<T: 'static>(&self) -> Result<&T, TaskError> {
        self.state.get()
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

    /// Runs async code to its end, on a runtime that all slots of the worker share and that carries
    /// no broker traffic.
    ///
    /// The future is polled on the calling thread. Tasks that it spawns, and its sockets and
    /// timers, go on after it has ended, so that a client may be shared between tasks. Timers and
    /// sockets are made within the future: `cx.block_on(async { sleep(time).await })`.
    ///
    /// # Errors
    /// Returns the error of [`TaskContext::check`] when the job is stopped or the deadline passes;
    /// the future is dropped then. Also fails if it is called from within async code, or if the
    /// operating system gives no runtime.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, TaskError> {
        task_runtime()?.block_on(self.until_ended(future))
    }

    /// Waits for `future`, but not beyond the job's stop or the deadline; then the future is
    /// dropped.
    pub(crate) async fn until_ended<F: Future>(&self, future: F) -> Result<F::Output, TaskError> {
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
            () = overdue => Err(TaskError(Trouble::TimedOut)),
        }
    }
}

/// Why a task gave no output.
///
/// The type deliberately is no `std::error::Error`, so that `?` turns any error into one: those of
/// the standard library and of `thiserror`, `anyhow::Error`, `Box<dyn Error + Send + Sync>`, and
/// texts. The reason has the text of the error and of its causes, and keeps nothing else of them.
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
pub struct TaskError(Trouble);

/// What a [`TaskError`] means for the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Try again later, with this reason.
    Failed(String),
    /// Never again, with this reason.
    Rejected(String),
    /// The task does not decode as the kind's type, with this reason: it is wrong, or was made by
    /// another build.
    Undecodable(String),
    /// The job was stopped; no outcome.
    Stopped,
    /// The deadline passed; counts as a failure.
    TimedOut,
    /// Try again after this delay, whatever the job's policy says, with this reason. Counts as a
    /// failure.
    Delayed(String, Duration),
}

impl Trouble {
    /// With a reason of a length that travels.
    pub(crate) fn clipped(self) -> Self {
        match self {
            Self::Failed(reason) => Self::Failed(clip_reason(&reason).into_owned()),
            Self::Rejected(reason) => Self::Rejected(clip_reason(&reason).into_owned()),
            Self::Undecodable(reason) => Self::Undecodable(clip_reason(&reason).into_owned()),
            Self::Delayed(reason, delay) => Self::Delayed(clip_reason(&reason).into_owned(), delay),
            Self::Stopped | Self::TimedOut => self,
        }
    }

    /// How many bytes the reason takes on the wire, where some characters take six.
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

    /// Fails this try; the next one begins after `delay`, which takes the place of the job's own
    /// retry delays. The try counts like any other. The delay is rounded up to the whole second,
    /// and is at least 1 s and at most [`RETRY_DELAY_MAX`](crate::RETRY_DELAY_MAX).
    ///
    /// The reason is a plain one; [`TaskError::context`] says more.
    #[must_use]
    pub fn retry_after(delay: Duration) -> Self {
        Self(Trouble::Delayed(format!("it asks for another try after {delay:?}"), delay))
    }

    /// Puts `text` and a colon before the reason, as in `reading the index: no such file`. Changes
    /// nothing else: a rejected task stays rejected, and a stop or a passed deadline has no reason
    /// to add to.
    #[must_use]
    pub fn context(self, text: impl fmt::Display) -> Self {
        Self(match self.0 {
            Trouble::Failed(reason) => Trouble::Failed(format!("{text}: {reason}")),
            Trouble::Rejected(reason) => Trouble::Rejected(format!("{text}: {reason}")),
            Trouble::Delayed(reason, delay) => Trouble::Delayed(format!("{text}: {reason}"), delay),
            other @ (Trouble::Stopped | Trouble::TimedOut | Trouble::Undecodable(_)) => other,
        })
    }

    pub(crate) fn from_trouble(trouble: Trouble) -> Self {
        Self(trouble)
    }

    pub(crate) fn stopped() -> Self {
        Self(Trouble::Stopped)
    }

    pub(crate) fn undecodable(why: impl fmt::Display) -> Self {
        Self(Trouble::Undecodable(why.to_string()))
    }

    /// Returns whether the job was stopped, so that the task has no outcome.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self.0, Trouble::Stopped)
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

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self(Trouble::Failed(crate::error_chain(&*error.into())))
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
        let reasons: Vec<_> = (0..5).map(|how| fails(how).unwrap_err().into_trouble()).collect();
        let expected = [
            "reading row 7: the disk is gone",
            "the disk is gone",
            "a text",
            "a longer text",
            "writing row 7: the disk is gone",
        ];
        assert_eq!(reasons, expected.map(|reason| Trouble::Failed(reason.into())));
    }

    #[test]
    fn context_goes_before_the_reason() {
        let told = |error: TaskError| error.context("row 7").into_trouble();
        assert_eq!(told(DiskGone.into()), Trouble::Failed("row 7: the disk is gone".into()));
        assert_eq!(told(TaskError::reject("odd")), Trouble::Rejected("row 7: odd".into()));
        assert_eq!(told(TaskError::stopped()), Trouble::Stopped);
        let wait = Duration::from_secs(30);
        let reason = "row 7: it asks for another try after 30s";
        assert_eq!(told(TaskError::retry_after(wait)), Trouble::Delayed(reason.into(), wait));
    }

    fn context(stop: StopSignal) -> TaskContext {
        TaskContext::new(JobId::generate(), TaskIndex(0), 2, stop)
    }

    #[test]
    fn async_code_runs_to_its_end() {
        let cx = context(StopSignal::new());
        assert_eq!(cx.attempt(), 3);
        assert_eq!(cx.block_on(async { 7 }).unwrap(), 7);
    }

    #[test]
    fn async_code_ends_at_stop_and_at_the_deadline() {
        let stop = StopSignal::new();
        let mut cx = context(stop.clone());
        let never = |cx: &TaskContext| cx.block_on(pending::<()>()).unwrap_err().into_trouble();
        cx.move_to(TaskIndex(0), Some(Instant::now() + std::time::Duration::from_millis(20)));
        assert_eq!(never(&cx), Trouble::TimedOut);
        assert!(cx.deadline() <= Some(Instant::now()), "it ended before its deadline");
        cx.move_to(TaskIndex(0), None);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| never(&cx));
            stop.stop();
            assert_eq!(waiting.join().unwrap(), Trouble::Stopped);
        });
    }

    #[tokio::test]
    async fn block_on_within_async_code_is_refused() {
        let error = context(StopSignal::new()).block_on(async { 7 }).unwrap_err();
        let Trouble::Rejected(why) = error.into_trouble() else { panic!("it would be tried again") };
        assert!(why.contains("await the future instead"), "{why}");
    }
}
