//! The worker's side of a batch whose tasks run in a child.

use std::{
    future::pending,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use gristmill_shared::{
    Backoff, BatchRun, FailureKind, StopSignal, TaskContext, TaskIndex,
    wire::{Batch, Malformed},
};
use serde_json::value::RawValue;
use tokio::time::{sleep, sleep_until};

use super::{Isolation, child_process::ChildProcess, protocol::Answer};

/// Time after its deadline for a task to end by itself, since it knows its deadline as well.
/// Together with the time between SIGTERM and SIGKILL it is less than the time after which a worker
/// gives up the slot's thread.
const DEADLINE_SLACK: Duration = Duration::from_millis(200);

/// Pause after a child that could not be started. Doubles up to [`RESTART_DELAY_MAX`].
const RESTART_DELAY: Duration = Duration::from_secs(1);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);

/// A slot whose batches run in a child, which is started at the first one.
pub(crate) struct IsolatedSlot {
    isolation: Isolation,
    /// The number of the slot.
    number: u32,
    child: Option<ChildProcess>,
    /// The pauses after failed starts, until one succeeds.
    restart_backoff: Backoff,
}

/// The properties of a job on which the run of its batches depends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobTraits {
    /// True if the tasks travel beside their outputs.
    pub(crate) sends_tasks: bool,
    /// Number of tasks that a slot keeps in flight.
    pub(crate) in_flight: u32,
}

/// The signals of a run.
struct RunSignals {
    /// Given when the job is stopped, or with `revoked`.
    cx: TaskContext,
    /// Given when the job is stopped, or has ended.
    stop: StopSignal,
    /// Given when the batch is taken from the slot's thread.
    revoked: StopSignal,
    /// Given when the worker leaves.
    halt: StopSignal,
}

/// An event while a batch runs.
enum RunEvent {
    Answer,
    /// The child has closed its answers, or violated the protocol.
    Broken(io::Error),
    /// The running task has passed its deadline.
    Overdue,
    Stopped,
    Halted,
    /// The child must end: the lease was revoked, or a stop was not obeyed.
    Kill,
}

impl IsolatedSlot {
    pub(crate) fn new(isolation: Isolation, number: u32) -> Self {
        let restart_backoff = Backoff::exact(RESTART_DELAY, RESTART_DELAY_MAX);
        Self { isolation, number, child: None, restart_backoff }
    }

    #[cfg(test)]
    pub(crate) fn has_child(&self) -> bool {
        self.child.is_some()
    }

    /// Runs a batch in the child as `AnyJob::process_batch` does in this process. A child that dies
    /// costs the task at which it died one attempt; the other tasks go to the next child.
    ///
    /// # Errors
    /// If the batch does not have as many tasks as it says; then no task has run.
    pub(crate) fn process_batch(
        &mut self,
        batch: &Batch<'_>,
        job: JobTraits,
        run: &mut BatchRun<'_>,
        stop: &StopSignal,
        revoked: &StopSignal,
    ) -> Result<u32, Malformed> {
        let tasks = batch.encoded_tasks()?;
        let cx = run.task_context().clone();
        let (stop, revoked, halt) = (stop.clone(), revoked.clone(), run.halt_signal().clone());
        let signals = RunSignals { cx, stop, revoked, halt };
        let mut isolated =
            IsolatedRun { batch, tasks: &tasks, job, run, next: 0, sent: 0, one_by_one: false };
        match gristmill_process::runtime() {
            Ok(runtime) => runtime.block_on(self.process(&mut isolated, &signals)),
            Err(error) => {
                // Without a thread or a descriptor to supervise children, no task can run.
                let reason = format!("cannot run tasks in a child: {error}");
                while isolated.next < tasks.len() {
                    isolated.fail(FailureKind::Failed(reason.clone()));
                }
            }
        }
        let ran = isolated.next;
        run.finish();
        Ok(u32::try_from(ran).unwrap_or(u32::MAX))
    }

    /// Sends the child which jobs have ended, so that it drops their states.
    pub(crate) fn forget_ended(&mut self) {
        let (Some(mut child), Ok(runtime)) = (self.child.take(), gristmill_process::runtime()) else {
            return;
        };
        match runtime.block_on(child.send_forget_ended()) {
            Ok(()) => self.child = Some(child),
            Err(error) => {
                // The next batch starts another one.
                tracing::warn!(pid = child.id(), %error, "the idle child process of a slot does not read; ending it");
            }
        }
    }

    async fn process(&mut self, isolated: &mut IsolatedRun<'_, '_, '_>, signals: &RunSignals) {
        while isolated.next < isolated.tasks.len() && !signals.is_ending() {
            if isolated.run.await_prepared(isolated.index()).is_err() {
                return; // the lease was revoked
            }
            let Some(mut child) = self.ensure_child(signals).await else { return };
            let before = isolated.next;
            match isolated.run_in(&mut child, signals, self.isolation.stop_grace).await {
                Ok(RunEnd::Completed) => self.child = Some(child),
                Ok(RunEnd::Unprepared) => {
                    self.child = Some(child);
                    return;
                }
                Ok(RunEnd::Unusable) => return, // dropping it ends it
                Ok(RunEnd::Overdue) if isolated.is_culprit_known() => isolated.fail(FailureKind::TimedOut),
                Ok(RunEnd::Overdue) => {
                    let (pid, index) = (child.id(), isolated.index());
                    tracing::info!(
                        pid, %index, "one of several tasks in flight is overdue; the rest of the batch runs task by task"
                    );
                    isolated.one_by_one = true;
                    continue;
                }
                Err(error) => {
                    let pid = child.id();
                    let reason = child.terminate(&error).await;
                    let index = isolated.index();
                    if isolated.next == isolated.tasks.len() {
                        tracing::warn!(pid, reason, "the child process of a slot ended after its last task");
                    } else if isolated.next + 1 == isolated.sent {
                        tracing::warn!(pid, %index, reason, "the child process of a task ended");
                        isolated.fail(FailureKind::Failed(format!("its process {reason}")));
                    } else {
                        // Outcomes of the last moment were lost with the child, so the first
                        // missing one may not be the culprit.
                        tracing::info!(
                            pid, %index, reason,
                            "the child process of a batch ended; the rest of the batch runs task by task"
                        );
                        isolated.one_by_one = true;
                    }
                    continue;
                }
            }
            if isolated.next == before && !signals.is_ending() && isolated.next < isolated.tasks.len() {
                // A child that ends a batch without a reason would be asked for ever.
                self.child = None;
                isolated.fail(FailureKind::Failed("its process answered nothing".into()));
            }
        }
    }

    /// Returns the child, started if there is none; `None` if the run must end before one starts.
    async fn ensure_child(&mut self, signals: &RunSignals) -> Option<ChildProcess> {
        if let Some(child) = self.child.take() {
            return Some(child);
        }
        loop {
            let started = tokio::select! {
                biased;
                () = signals.wait_ending() => return None,
                started = ChildProcess::start(&self.isolation.command, self.number) => started,
            };
            let reason = match started {
                Ok(child) => {
                    self.restart_backoff.reset();
                    tracing::debug!(pid = child.id(), "a child process runs the batches of a slot");
                    return Some(child);
                }
                Err(reason) => reason,
            };
            let again_in = self.restart_backoff.next_pause();
            tracing::warn!(reason, ?again_in, "the child process of a slot could not be started");
            tokio::select! {
                () = signals.wait_ending() => return None,
                () = sleep(again_in) => {}
            }
        }
    }
}

impl RunSignals {
    /// True if the run must end before its next task.
    fn is_ending(&self) -> bool {
        self.halt.is_stopped() || self.cx.check().is_err()
    }

    /// Waits until the run must end.
    async fn wait_ending(&self) {
        tokio::select! {
            () = self.halt.stopped() => {}
            () = self.cx.stopped() => {}
        }
    }
}

/// The end of a run in a child that did not die.
enum RunEnd {
    /// The child has ended the batch and is free.
    Completed,
    /// The child has ended the batch without running a task: the job's state failed to open a
    /// moment ago.
    Unprepared,
    /// The child cannot be used any more.
    Unusable,
    /// The running task passed its deadline.
    Overdue,
}

/// The run of a batch in children.
struct IsolatedRun<'b, 'a, 'r> {
    batch: &'b Batch<'a>,
    tasks: &'b [&'a RawValue],
    job: JobTraits,
    run: &'b mut BatchRun<'r>,
    /// The first task without an outcome.
    next: usize,
    /// The end of the tasks that the child has.
    sent: usize,
    /// True if the child gets one task at a time, so that the task at which it dies is known.
    one_by_one: bool,
}

impl IsolatedRun<'_, '_, '_> {
    fn index(&self) -> TaskIndex {
        self.batch.first.plus(self.next as u64)
    }

    /// True if the first task without an outcome is the only one that the child can run now.
    fn is_culprit_known(&self) -> bool {
        self.job.in_flight <= 1 || self.next + 1 == self.sent
    }

    /// Records that the first task without an outcome has no output.
    fn fail(&mut self, trouble: FailureKind) {
        if let Some(task) = self.tasks.get(self.next) {
            self.run.record_outcome(self.index(), Err(trouble), task, false);
            self.next += 1;
        }
    }

    /// Begins the next task and returns its deadline. A stop takes effect through the signals.
    fn begin_next(&mut self) -> Option<Instant> {
        let index = self.index();
        self.run.begin_task(index).ok().flatten()
    }

    /// Runs the remaining tasks in this child.
    async fn run_in(
        &mut self,
        child: &mut ChildProcess,
        signals: &RunSignals,
        stop_grace: Duration,
    ) -> io::Result<RunEnd> {
        let failures = signals.cx.attempt().saturating_sub(1);
        self.sent = if self.one_by_one { self.next + 1 } else { self.tasks.len() };
        child.send_batch(self.batch, self.next..self.sent, self.tasks, failures, &signals.stop).await?;
        // No task begins before the job's state is open.
        let (mut is_prepared, mut deadline) = (false, None::<Instant>);
        let (mut stopped_at, mut halted) = (None::<Instant>, false);
        loop {
            let event = {
                let kill_at = stopped_at.map(|at| at + stop_grace);
                let overdue_at = deadline.and_then(|deadline| deadline.checked_add(DEADLINE_SLACK));
                let mut killing = pin!(wait_until(kill_at));
                let mut overdue = pin!(wait_until(overdue_at));
                tokio::select! {
                    biased;
                    () = signals.revoked.stopped() => RunEvent::Kill,
                    () = signals.cx.stopped(), if stopped_at.is_none() => RunEvent::Stopped,
                    () = &mut killing => RunEvent::Kill,
                    answered = child.read_answer() => answered.map_or_else(RunEvent::Broken, |()| RunEvent::Answer),
                    () = &mut overdue => RunEvent::Overdue,
                    () = signals.halt.stopped(), if !halted => RunEvent::Halted,
                }
            };
            match event {
                RunEvent::Answer => {
                    if self.apply_answer(child, &mut is_prepared)? {
                        return Ok(match self.run.unprepared_reason() {
                            _ if halted => RunEnd::Unusable,
                            Some(_) => RunEnd::Unprepared,
                            None => RunEnd::Completed,
                        });
                    }
                    deadline = if is_prepared && self.next < self.sent { self.begin_next() } else { None };
                }
                RunEvent::Broken(error) => return Err(error),
                RunEvent::Overdue if stopped_at.is_some() => return Ok(RunEnd::Unusable),
                RunEvent::Overdue => return Ok(RunEnd::Overdue),
                RunEvent::Kill => {
                    if stopped_at.is_some() && !signals.revoked.is_stopped() {
                        let (job, index) = (self.batch.job, self.index());
                        tracing::warn!(
                            %job, %index, pid = child.id(), grace = ?stop_grace,
                            "a task runs on after its job was stopped; ending its process (hint: call cx.check() now \
                             and then)"
                        );
                    }
                    return Ok(RunEnd::Unusable);
                }
                RunEvent::Stopped => {
                    stopped_at = Some(Instant::now());
                    child.send_stop(self.batch.job, self.batch.round).await?;
                }
                RunEvent::Halted => {
                    halted = true;
                    child.close_input();
                }
            }
        }
    }

    /// Applies an answer. Returns true at the end of the tasks that were sent.
    fn apply_answer(&mut self, child: &ChildProcess, is_prepared: &mut bool) -> io::Result<bool> {
        let answer = child.parse_answer().map_err(|_| child.invalid_answer())?;
        match answer {
            Answer::Prepared { micros } if !*is_prepared => {
                *is_prepared = true;
                self.run.add_prepare_time(Duration::from_micros(micros));
            }
            Answer::Done { first, outputs } if *is_prepared && first == self.index() => {
                let outputs: Vec<&RawValue> = serde_json::from_str(outputs.get())?;
                for output in outputs {
                    let task = self.tasks.get(self.next).filter(|_| self.next < self.sent);
                    let Some(task) = task else { return Err(child.invalid_answer()) };
                    self.run.record_outcome(self.index(), Ok(output), task, self.job.sends_tasks);
                    self.next += 1;
                }
            }
            Answer::Failed { index, failure }
                if *is_prepared && index == self.index() && self.next < self.sent =>
            {
                self.fail(failure.into_kind());
            }
            Answer::Unprepared { reason } if !*is_prepared => self.run.set_unprepared(reason),
            Answer::Refused { reason } if !*is_prepared => self.fail(FailureKind::Failed(reason)),
            Answer::End => return Ok(true),
            _ => return Err(child.invalid_answer()),
        }
        Ok(false)
    }
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}
