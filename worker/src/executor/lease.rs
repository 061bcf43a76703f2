//! The lease of a slot on its batch, and its revocation after the time limit of a task.
//!
//! A thread cannot be ended from outside. When a task runs on long after its time limit or after
//! its job's stop, and when the grace of a leaving worker ends, the lease and the batch are revoked
//! atomically. Later outcomes of the thread are discarded, and the pool publishes the rest of the
//! batch.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{StopSignal, TaskIndex};
use tokio::sync::Notify;

use super::held_task::{HeldTask, RunningBatch};
use crate::{
    context::WorkerContext,
    delivery::BatchDelivery,
    outbound::{Outbound, PublishRequest},
};

/// Time after its time limit for a task to notice it by itself.
pub(crate) const OVERDUE_GRACE: Duration = Duration::from_secs(2);

/// The lease of a slot.
#[derive(Debug)]
pub(crate) struct SlotLease {
    state: Mutex<LeaseState>,
    /// Notified when a task begins whose deadline is to be watched.
    wake: Arc<Notify>,
}

/// The state of a lease under its lock.
#[derive(Debug, Default)]
struct LeaseState {
    /// The fencing token of the current holder, one higher after each revocation.
    fence: u32,
    current: Option<CurrentBatch>,
    /// The tasks in which former holders are stuck, each with the token of its holder.
    stuck: Vec<(u32, HeldTask)>,
}

impl LeaseState {
    /// Revokes the lease of the current holder and returns its batch.
    fn revoke(&mut self, context: &WorkerContext) -> Option<CurrentBatch> {
        let mut current = self.current.take()?;
        if let Some(task) = current.sample_task(Instant::now()) {
            self.stuck.push((self.fence, HeldTask { stuck: true, ..task }));
        }
        self.fence += 1;
        current.revoked.stop();
        context.counts.thread_stuck(); // before the thread can take itself off
        Some(current)
    }
}

/// An index after every task of a batch.
pub(crate) const END_OF_BATCH: TaskIndex = TaskIndex(u64::MAX);

/// The batch that a slot runs.
#[derive(Debug)]
pub(crate) struct CurrentBatch {
    pub(crate) delivery: Arc<BatchDelivery>,
    /// The index before which all outcomes are published.
    pub(crate) emitted_up_to: TaskIndex,
    running: Option<TimedTask>,
    began: Instant,
    /// The identity of the batch; known before its first task begins.
    batch: Option<RunningBatch>,
    /// The task that ran at the last sample, and the time when it was first seen to run.
    seen: Option<(TaskIndex, Instant)>,
    /// The time when the watcher noticed the stop of the job.
    stopped_at: Option<Instant>,
    /// Given when the lease is revoked, so that the batch's child processes end.
    revoked: StopSignal,
}

impl CurrentBatch {
    fn new(delivery: &Arc<BatchDelivery>) -> Self {
        Self {
            delivery: Arc::clone(delivery),
            emitted_up_to: TaskIndex(0),
            running: None,
            began: Instant::now(),
            batch: None,
            seen: None,
            stopped_at: None,
            revoked: StopSignal::new(),
        }
    }

    /// Samples the running task; returns `None` while outcomes are published.
    fn sample_task(&mut self, now: Instant) -> Option<HeldTask> {
        let batch = self.batch.as_ref()?;
        let index = self.delivery.running.get();
        let Some(index) = index.filter(|_| self.emitted_up_to != END_OF_BATCH) else {
            self.seen = None;
            return None;
        };
        let since = match (self.seen, self.running) {
            (_, Some(running)) if running.index == index => running.began,
            (Some((seen, since)), _) if seen == index => since,
            _ if index == batch.first => self.began,
            _ => now,
        };
        self.seen = Some((index, since));
        Some(HeldTask { batch: batch.clone(), index, since, stuck: false })
    }

    /// Returns the end of the grace after the job's stop, if the job was stopped.
    fn stop_deadline(&mut self, now: Instant, stop_grace: Duration) -> Option<Instant> {
        let is_stopped = self.batch.as_ref().is_some_and(|batch| batch.stop.is_stopped());
        if !is_stopped || self.emitted_up_to == END_OF_BATCH {
            return None;
        }
        if self.stopped_at.is_none() {
            self.stopped_at = Some(now);
            let _ = self.sample_task(now); // it has run since then at the latest
        }
        self.stopped_at?.checked_add(stop_grace)
    }
}

/// A task with a time limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimedTask {
    pub(crate) index: TaskIndex,
    pub(crate) began: Instant,
    deadline: Instant,
}

/// The result of a check of a lease's deadlines.
#[derive(Debug)]
pub(crate) enum DeadlineCheck {
    /// The slot runs no task with a time limit or with a stopped job.
    NoDeadline,
    /// The running task has until this time.
    Pending(Instant),
    /// The job of the task was stopped and the task did not end within the grace. The lease is
    /// revoked, and the caller finishes the batch.
    Stopped(CurrentBatch, HeldTask),
    /// The task is past its time limit and the grace. The lease is revoked, and the caller finishes
    /// the batch.
    Overdue(CurrentBatch, TimedTask),
}

impl SlotLease {
    pub(crate) fn new(wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), wake })
    }

    /// Acquires the lease for a new thread, which sends on `exits` whether it ended in order.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        context: Arc<WorkerContext>,
        exits: flume::Sender<bool>,
    ) -> LeaseHolder {
        let fence = self.lock().fence;
        LeaseHolder { lease: Arc::clone(self), fence, context, exits }
    }

    /// Checks whether the running task is overdue, or goes on `stop_grace` after its job was
    /// stopped, and revokes the lease if so.
    pub(crate) fn check_deadlines(
        &self,
        now: Instant,
        stop_grace: Duration,
        context: &WorkerContext,
    ) -> DeadlineCheck {
        let mut state = self.lock();
        let Some(current) = &mut state.current else { return DeadlineCheck::NoDeadline };
        let overdue_deadline =
            current.running.and_then(|running| running.deadline.checked_add(OVERDUE_GRACE));
        if let Some(stop_deadline) = current.stop_deadline(now, stop_grace) {
            let end = overdue_deadline.map_or(stop_deadline, |end| end.min(stop_deadline));
            if now < end {
                return DeadlineCheck::Pending(end);
            }
            let Some(task) = current.sample_task(now) else {
                // The thread waits for the broker, and begins no further task.
                current.stopped_at = Some(now);
                return now.checked_add(stop_grace).map_or(DeadlineCheck::NoDeadline, DeadlineCheck::Pending);
            };
            return state
                .revoke(context)
                .map_or(DeadlineCheck::NoDeadline, |current| DeadlineCheck::Stopped(current, task));
        }
        let (Some(mut running), Some(end)) = (current.running, overdue_deadline) else {
            return DeadlineCheck::NoDeadline;
        };
        if now < end {
            return DeadlineCheck::Pending(end);
        }
        // Of several tasks in flight, the one that holds the thread.
        running.index = current.delivery.running.get().unwrap_or(running.index);
        state
            .revoke(context)
            .map_or(DeadlineCheck::NoDeadline, |current| DeadlineCheck::Overdue(current, running))
    }

    /// Returns the task that the slot runs now and those in which its former threads are stuck.
    pub(crate) fn held_tasks(&self, now: Instant) -> Vec<HeldTask> {
        let mut state = self.lock();
        let running = state.current.as_mut().and_then(|current| current.sample_task(now));
        running.into_iter().chain(state.stuck.iter().map(|(_, task)| task.clone())).collect()
    }

    /// Revokes the lease and returns its batch; returns `None` if there is none, or if all of its
    /// outcomes are published.
    pub(crate) fn revoke_running(&self, context: &WorkerContext) -> Option<CurrentBatch> {
        let mut state = self.lock();
        if state.current.as_ref().is_some_and(|current| current.emitted_up_to == END_OF_BATCH) {
            return None;
        }
        state.revoke(context)
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        // No code panics under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right of a thread to run batches on its slot.
#[derive(Debug)]
pub(crate) struct LeaseHolder {
    lease: Arc<SlotLease>,
    fence: u32,
    context: Arc<WorkerContext>,
    /// Receives at the end whether it was in order, unless the lease was revoked.
    exits: flume::Sender<bool>,
}

impl LeaseHolder {
    /// Begins a batch. Returns a signal that is given if the lease is revoked.
    pub(crate) fn begin_batch(&self, delivery: &Arc<BatchDelivery>) -> StopSignal {
        let current = CurrentBatch::new(delivery);
        let revoked = current.revoked.clone();
        let _ = self.state().map(|mut state| state.current = Some(current));
        revoked
    }

    /// Records the identity of the batch, before any code of its job runs.
    pub(crate) fn identify(&self, batch: RunningBatch) {
        let is_stopped = batch.stop.is_stopped();
        if let Some(current) = self.state().as_mut().and_then(|state| state.current.as_mut()) {
            current.batch = Some(batch);
        }
        if is_stopped {
            self.lease.wake.notify_one(); // the watcher may have looked before
        }
    }

    /// Begins a task with a time limit. Without a deadline, ends the watch over the task before.
    /// Returns false if the lease is lost.
    pub(crate) fn begin_task(&self, index: TaskIndex, deadline: Option<Instant>) -> bool {
        let Some(mut state) = self.state() else { return false };
        let Some(current) = &mut state.current else { return false };
        let Some(deadline) = deadline else {
            current.running = None;
            return true;
        };
        let running = TimedTask { index, began: Instant::now(), deadline };
        let watched = current.running.replace(running).is_some();
        drop(state);
        if !watched {
            self.lease.wake.notify_one(); // a watched lease is checked when its task before was due
        }
        true
    }

    /// Makes the request to publish the outcomes of the tasks before `up_to`, with its parts
    /// pending from now on, so that the batch cannot be settled before they are stored. Returns
    /// `None` if the lease is lost; then the outcomes are discarded. No task runs meanwhile.
    pub(crate) fn emit_if_held(&self, outbound: Outbound, up_to: TaskIndex) -> Option<PublishRequest> {
        let mut state = self.state()?;
        let current = state.current.as_mut()?;
        current.running = None;
        current.emitted_up_to = up_to;
        Some(PublishRequest::new(outbound, &current.delivery.in_flight))
    }

    /// Ends the batch. Returns false if the lease was revoked: then the pool has finished the
    /// batch.
    pub(crate) fn end_batch(&self) -> bool {
        self.state().is_some_and(|mut state| {
            state.current = None;
            true
        })
    }

    /// Locks the lease; returns `None` if it is lost.
    fn state(&self) -> Option<MutexGuard<'_, LeaseState>> {
        Some(self.lease.lock()).filter(|state| state.fence == self.fence)
    }
}

impl Drop for LeaseHolder {
    fn drop(&mut self) {
        let mut state = self.lease.lock();
        if state.fence == self.fence {
            let _ = self.exits.try_send(!std::thread::panicking()); // the worker may have left
        } else {
            state.stuck.retain(|(fence, _)| *fence != self.fence);
            self.context.counts.thread_recovered();
        }
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{Message, Outgoing, QueueRole};

    use super::*;

    fn test_message(context: &WorkerContext) -> Outbound {
        vec![Outgoing { to: context.address(QueueRole::Results), message: Message::default() }].into()
    }

    /// The batch is not settled before the outcomes of the former holder are stored.
    #[tokio::test]
    async fn revoked_batch_awaits_outcomes() {
        let context = WorkerContext::for_test().await;
        let lease = SlotLease::new(Arc::default());
        let holder = lease.acquire(Arc::clone(&context), flume::bounded(1).0);
        let delivery = Arc::new(BatchDelivery::for_test(QueueRole::Tasks));
        let revoked = holder.begin_batch(&delivery);
        let request = holder.emit_if_held(test_message(&context), TaskIndex(3)).unwrap();
        assert!(!revoked.is_stopped());
        assert_eq!(lease.revoke_running(&context).unwrap().emitted_up_to, TaskIndex(3));
        assert!(revoked.is_stopped());
        delivery.in_flight.complete_part(); // the pool has finished it
        assert!(!delivery.in_flight.is_settled(), "before its outcomes are stored");
        assert!(holder.emit_if_held(Outbound::default(), END_OF_BATCH).is_none(), "the lease is lost");
        request.complete();
        assert!(delivery.in_flight.is_settled());
    }

    #[tokio::test]
    async fn time_limit_excludes_prepare() {
        let context = WorkerContext::for_test().await;
        let lease = SlotLease::new(Arc::default());
        let holder = lease.acquire(Arc::clone(&context), flume::bounded(1).0);
        holder.begin_batch(&Arc::new(BatchDelivery::for_test(QueueRole::Tasks)));
        let now = Instant::now();
        let check = |lease: &SlotLease| {
            lease.check_deadlines(now + 2 * OVERDUE_GRACE, Duration::from_secs(10), &context)
        };
        assert!(holder.begin_task(TaskIndex(3), Some(now)));
        assert!(holder.begin_task(TaskIndex(3), None));
        assert!(matches!(check(&lease), DeadlineCheck::NoDeadline));
        assert!(holder.begin_task(TaskIndex(3), Some(now)));
        assert!(matches!(check(&lease), DeadlineCheck::Overdue(..)));
        assert!(!holder.begin_task(TaskIndex(3), None), "the lease is lost");
    }

    #[tokio::test]
    async fn finished_batch_keeps_its_lease() {
        let context = WorkerContext::for_test().await;
        let lease = SlotLease::new(Arc::default());
        let holder = lease.acquire(Arc::clone(&context), flume::bounded(1).0);
        let revoked = holder.begin_batch(&Arc::new(BatchDelivery::for_test(QueueRole::Tasks)));
        assert!(holder.emit_if_held(Outbound::default(), END_OF_BATCH).is_some());
        assert!(lease.revoke_running(&context).is_none());
        assert!(holder.end_batch());
        assert!(lease.revoke_running(&context).is_none(), "there is nothing to take");
        assert!(!revoked.is_stopped());
    }
}
