//! The worker's side of a batch whose tasks run in a child.

use std::{
    future::pending,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use gristmill_shared::{
    BatchRun, StopSignal, TaskContext, TaskIndex, Trouble,
    wire::{Batch, Malformed},
};
use serde_json::value::RawValue;
use tokio::time::{sleep, sleep_until};

use super::{Isolation, child_process::Child, protocol::Answer};

/// Time after its deadline in which a task may end by itself, since it knows its deadline as well.
/// Together with the time between SIGTERM and SIGKILL it is less than the time after which a worker
/// gives up the slot's thread.
const DEADLINE_SLACK: Duration = Duration::from_millis(200);

/// Pause after a child that could not be started. Doubles up to [`RESTART_DELAY_MAX`].
const RESTART_DELAY: Duration = Duration::from_secs(1);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);

/// A slot whose batches run in a child, which is started at the first one.
pub(crate) struct IsolatedSlot {
    isolation: Isolation,
    child: Option<Child>,
    /// Starts that failed since the last one that did not.
    failed_starts: u32,
}

/// The facts about a job on which the run of its batches depends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobTraits {
    /// True if the tasks travel beside their outputs.
    pub(crate) sends_tasks: bool,
    /// Number of tasks that a slot keeps in flight.
    pub(crate) in_flight: u32,
}

/// The signals of a run.
struct Signals {
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
enum Event {
    Answer,
    /// The child has closed its answers, or broken their form.
    Broken(io::Error),
    /// The running task has passed its deadline.
    Overdue,
    Stopped,
    Halted,
    /// The child must go: its batch was taken away, or a stop was not obeyed.
    Kill,
}

impl IsolatedSlot {
    pub(crate) fn new(isolation: Isolation) -> Self {
        Self { isolation, child: None, failed_starts: 0 }
    }

    #[cfg(test)]
    pub(crate) fn has_child(&self) -> bool {
        self.child.is_some()
    }

    /// Runs a batch in the child as `AnyJob::process_batch` does here. A child that dies costs the
    /// task at which it died one attempt; the other tasks go to the next child.
    ///
    /// # Errors
    /// If the batch does not have as many tasks as it says; nothing was run then.
    pub(crate) fn process_batch(
        &mut self,
        batch: &Batch<'_>,
        job: JobTraits,
        run: &mut BatchRun<'_>,
        stop: &StopSignal,
        revoked: &StopSignal,
    ) -> Result<u32, Malformed> {
        let tasks = batch.each()?;
        let cx = run.task_context().clone();
        let (stop, revoked, halt) = (stop.clone(), revoked.clone(), run.halt_signal().clone());
        let signals = Signals { cx, stop, revoked, halt };
        let mut part = Part { batch, tasks: &tasks, job, run, next: 0, sent: 0, each: false };
        match gristmill_process::runtime() {
            Ok(runtime) => runtime.block_on(self.process(&mut part, &signals)),
            Err(error) => {
                // Without a thread or a descriptor to watch over children there is nothing to run
                // in.
                let reason = format!("cannot run tasks in a child: {error}");
                while part.next < tasks.len() {
                    part.fail(Trouble::Failed(reason.clone()));
                }
            }
        }
        let ran = part.next;
        run.finish();
        Ok(u32::try_from(ran).unwrap_or(u32::MAX))
    }

    /// Tells the child which jobs have ended, so that it drops their states.
    pub(crate) fn forget_ended(&mut self) {
        let (Some(mut child), Ok(runtime)) = (self.child.take(), gristmill_process::runtime()) else {
            return;
        };
        match runtime.block_on(child.forget_ended()) {
            Ok(()) => self.child = Some(child),
            Err(error) => {
                // The next batch starts another one.
                tracing::warn!(pid = child.id(), %error, "the idle child process of a slot does not read; ending it");
            }
        }
    }

    async fn process(&mut self, part: &mut Part<'_, '_, '_>, signals: &Signals) {
        while part.next < part.tasks.len() && !signals.end() {
            if part.run.await_prepared(part.index()).is_err() {
                return; // the batch was taken from the slot's thread
            }
            let Some(mut child) = self.ready(signals).await else { return };
            let before = part.next;
            match part.run_in(&mut child, signals, self.isolation.stop_grace).await {
                Ok(Done::Batch) => self.child = Some(child),
                Ok(Done::Unprepared) => {
                    self.child = Some(child);
                    return;
                }
                Ok(Done::Child) => return, // dropping it ends it
                Ok(Done::Overdue) if part.is_culprit_known() => part.fail(Trouble::TimedOut),
                Ok(Done::Overdue) => {
                    let (pid, index) = (child.id(), part.index());
                    tracing::info!(
                        pid, %index, "one of several tasks in flight is overdue; the rest of the batch runs task by task"
                    );
                    part.each = true;
                    continue;
                }
                Err(error) => {
                    let pid = child.id();
                    let reason = child.ended(&error).await;
                    let index = part.index();
                    if part.next == part.tasks.len() {
                        tracing::warn!(pid, reason, "the child process of a slot ended after its last task");
                    } else if part.next + 1 == part.sent {
                        tracing::warn!(pid, %index, reason, "the child process of a task ended");
                        part.fail(Trouble::Failed(format!("its process {reason}")));
                    } else {
                        // Outcomes of the last moment were lost with it, so its first missing one
                        // may not be the culprit.
                        tracing::info!(
                            pid, %index, reason,
                            "the child process of a batch ended; the rest of the batch runs task by task"
                        );
                        part.each = true;
                    }
                    continue;
                }
            }
            if part.next == before && !signals.end() && part.next < part.tasks.len() {
                // A child that ends a batch without a reason would be asked for ever.
                self.child = None;
                part.fail(Trouble::Failed("its process answered nothing".into()));
            }
        }
    }

    /// The child, started if there is none. Nothing if the run must end before one starts.
    async fn ready(&mut self, signals: &Signals) -> Option<Child> {
        if let Some(child) = self.child.take() {
            return Some(child);
        }
        loop {
            let started = tokio::select! {
                biased;
                () = signals.ended() => return None,
                started = Child::start(&self.isolation.command) => started,
            };
            let reason = match started {
                Ok(child) => {
                    self.failed_starts = 0;
                    tracing::debug!(pid = child.id(), "a child process runs the batches of a slot");
                    return Some(child);
                }
                Err(reason) => reason,
            };
            let doublings = self.failed_starts.min(5); // 32 s are over the maximum
            let again_in = (RESTART_DELAY * 2_u32.pow(doublings)).min(RESTART_DELAY_MAX);
            self.failed_starts = self.failed_starts.saturating_add(1);
            tracing::warn!(reason, ?again_in, "the child process of a slot could not be started");
            tokio::select! {
                () = signals.ended() => return None,
                () = sleep(again_in) => {}
            }
        }
    }
}

impl Signals {
    /// Returns whether the run must end before its next task.
    fn end(&self) -> bool {
        self.halt.is_stopped() || self.cx.check().is_err()
    }

    async fn ended(&self) {
        tokio::select! {
            () = self.halt.stopped() => {}
            () = self.cx.stopped() => {}
        }
    }
}

/// The end of a run in a child that did not die.
enum Done {
    /// The child has ended the batch and is free.
    Batch,
    /// The same, without a task: the job's state failed to open a moment ago.
    Unprepared,
    /// The child is of no use any more.
    Child,
    /// The running task passed its deadline.
    Overdue,
}

/// A batch under way.
struct Part<'b, 'a, 'r> {
    batch: &'b Batch<'a>,
    tasks: &'b [&'a RawValue],
    job: JobTraits,
    run: &'b mut BatchRun<'r>,
    /// The first task without an outcome.
    next: usize,
    /// The end of the tasks that the child has.
    sent: usize,
    /// True if the child is given one task at a time, so that it is known which one ends it.
    each: bool,
}

impl Part<'_, '_, '_> {
    fn index(&self) -> TaskIndex {
        self.batch.first.plus(self.next as u64)
    }

    /// True if the first task without an outcome is the only one that the child can run now.
    fn is_culprit_known(&self) -> bool {
        self.job.in_flight <= 1 || self.next + 1 == self.sent
    }

    /// Ends the first task without an outcome without an output.
    fn fail(&mut self, trouble: Trouble) {
        if let Some(task) = self.tasks.get(self.next) {
            self.run.outcome(self.index(), Err(trouble), task, false);
            self.next += 1;
        }
    }

    /// Begins the next task and returns its deadline. A stop is met where signals are.
    fn begin(&mut self) -> Option<Instant> {
        let index = self.index();
        self.run.begin_task(index).ok().flatten()
    }

    /// Runs the tasks that are left in this child.
    async fn run_in(
        &mut self,
        child: &mut Child,
        signals: &Signals,
        stop_grace: Duration,
    ) -> io::Result<Done> {
        let failures = signals.cx.attempt().saturating_sub(1);
        self.sent = if self.each { self.next + 1 } else { self.tasks.len() };
        child.run(self.batch, self.next..self.sent, self.tasks, failures, &signals.stop).await?;
        // No task has begun before the job's state is there.
        let (mut is_prepared, mut deadline) = (false, None::<Instant>);
        let (mut stopped_at, mut halted) = (None::<Instant>, false);
        loop {
            let event = {
                let kill_at = stopped_at.map(|at| at + stop_grace);
                let overdue_at = deadline.and_then(|deadline| deadline.checked_add(DEADLINE_SLACK));
                let mut killing = pin!(at(kill_at));
                let mut overdue = pin!(at(overdue_at));
                tokio::select! {
                    biased;
                    () = signals.revoked.stopped() => Event::Kill,
                    () = signals.cx.stopped(), if stopped_at.is_none() => Event::Stopped,
                    () = &mut killing => Event::Kill,
                    answered = child.answer() => answered.map_or_else(Event::Broken, |()| Event::Answer),
                    () = &mut overdue => Event::Overdue,
                    () = signals.halt.stopped(), if !halted => Event::Halted,
                }
            };
            match event {
                Event::Answer => {
                    if self.take(child, &mut is_prepared)? {
                        return Ok(match self.run.unprepared() {
                            _ if halted => Done::Child,
                            Some(_) => Done::Unprepared,
                            None => Done::Batch,
                        });
                    }
                    deadline = if is_prepared && self.next < self.sent { self.begin() } else { None };
                }
                Event::Broken(error) => return Err(error),
                Event::Overdue if stopped_at.is_some() => return Ok(Done::Child),
                Event::Overdue => return Ok(Done::Overdue),
                Event::Kill => {
                    if stopped_at.is_some() && !signals.revoked.is_stopped() {
                        let (job, index) = (self.batch.job, self.index());
                        tracing::warn!(
                            %job, %index, pid = child.id(), grace = ?stop_grace,
                            "a task runs on after its job was stopped; ending its process (hint: call cx.check() now \
                             and then)"
                        );
                    }
                    return Ok(Done::Child);
                }
                Event::Stopped => {
                    stopped_at = Some(Instant::now());
                    child.stop(self.batch.job, self.batch.round).await?;
                }
                Event::Halted => {
                    halted = true;
                    child.close();
                }
            }
        }
    }

    /// Takes an answer. True at the end of the tasks that were sent.
    fn take(&mut self, child: &Child, is_prepared: &mut bool) -> io::Result<bool> {
        let answer = child.parsed().map_err(|_| child.garbled())?;
        match answer {
            Answer::Prepared { micros } if !*is_prepared => {
                *is_prepared = true;
                self.run.add_prepare_time(Duration::from_micros(micros));
            }
            Answer::Done { first, outputs } if *is_prepared && first == self.index() => {
                let outputs: Vec<&RawValue> = serde_json::from_str(outputs.get())?;
                for output in outputs {
                    let task = self.tasks.get(self.next).filter(|_| self.next < self.sent);
                    let Some(task) = task else { return Err(child.garbled()) };
                    self.run.outcome(self.index(), Ok(output), task, self.job.sends_tasks);
                    self.next += 1;
                }
            }
            Answer::Failed { index, why }
                if *is_prepared && index == self.index() && self.next < self.sent =>
            {
                self.fail(why.into_trouble());
            }
            Answer::Unprepared { reason } if !*is_prepared => self.run.set_unprepared(reason),
            Answer::Refused { reason } if !*is_prepared => self.fail(Trouble::Failed(reason)),
            Answer::End => return Ok(true),
            _ => return Err(child.garbled()),
        }
        Ok(false)
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}
