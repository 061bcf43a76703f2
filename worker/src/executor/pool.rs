//! The pool of slots: starts their threads, and replaces those that are stuck in a task.

use std::{
    future::pending,
    num::NonZeroU16,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::FusedFuture};
use gristmill_shared::{
    Outgoing,
    wire::{self, Batch, Malformed},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    held_task::HeldTask,
    lease::{CurrentBatch, DeadlineCheck, SlotLease, TimedTask},
    slot,
};
use crate::{
    WorkerError,
    context::WorkerContext,
    delivery::BatchDelivery,
    outbound::{OutboundQueue, OutcomeBuilder, PublishRequest, count_retries},
    run_queue::RunQueueReceiver,
};

/// Stuck threads allowed for each slot. With more of them the worker ends, since only the end of
/// the process ends them.
const STUCK_PER_SLOT: u32 = 1;

/// The slots of a worker, each a thread with a lease.
#[derive(Debug)]
pub(crate) struct SlotPool {
    context: Arc<WorkerContext>,
    leases: Vec<Arc<SlotLease>>,
    run_receiver: RunQueueReceiver,
    outbound_queue: OutboundQueue,
    wake: Arc<Notify>,
    exits: (flume::Sender<bool>, flume::Receiver<bool>),
    /// Time for which a task may go on after its job was stopped.
    stop_grace: Duration,
    /// Cancelled when more threads are stuck than allowed.
    pub(crate) stuck_limit_reached: CancellationToken,
}

impl SlotPool {
    /// Starts a thread for each slot.
    pub(crate) fn start(
        slots: NonZeroU16,
        stop_grace: Duration,
        context: Arc<WorkerContext>,
        run_receiver: RunQueueReceiver,
        outbound_queue: OutboundQueue,
    ) -> Result<Self, WorkerError> {
        let wake = Arc::new(Notify::new());
        let leases: Vec<_> = (0..slots.get()).map(|_| SlotLease::new(Arc::clone(&wake))).collect();
        let exits = flume::bounded(leases.len());
        let stuck_limit_reached = CancellationToken::new();
        let pool = Self {
            context,
            leases,
            run_receiver,
            outbound_queue,
            wake,
            exits,
            stop_grace,
            stuck_limit_reached,
        };
        pool.leases.iter().zip(0..).try_for_each(|(lease, number)| pool.spawn_slot(number, lease))?;
        Ok(pool)
    }

    fn spawn_slot(&self, number: u32, lease: &Arc<SlotLease>) -> Result<(), WorkerError> {
        let holder = lease.acquire(Arc::clone(&self.context), self.exits.0.clone());
        let (context, run_receiver, outbound_queue) =
            (Arc::clone(&self.context), self.run_receiver.clone(), self.outbound_queue.clone());
        std::thread::Builder::new()
            .name(format!("slot-{number}"))
            .spawn(move || slot::run(number, &context, &holder, &run_receiver, &outbound_queue))
            .map(drop)
            .map_err(WorkerError::Threads)
    }

    /// Waits until the thread of each lease has ended. `grace` after the worker began to leave,
    /// requeues the unpublished rest of the batches that still run, and waits for their threads no
    /// longer.
    pub(crate) async fn wait_finished(
        &self,
        leaving: &CancellationToken,
        grace: Duration,
    ) -> Result<(), WorkerError> {
        let too_long = async {
            leaving.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        let mut too_long = std::pin::pin!(too_long.fuse());
        let mut left = self.leases.len();
        while left > 0 {
            tokio::select! {
                in_order = self.exits.1.recv_async() => {
                    if in_order != Ok(true) {
                        return Err(WorkerError::Died); // it panicked outside user code
                    }
                    left -= 1;
                }
                () = &mut too_long, if !too_long.is_terminated() => left -= self.abandon_running().await,
            }
        }
        Ok(())
    }

    /// Revokes the leases of all running batches and requeues their unpublished rest. Returns their
    /// number.
    async fn abandon_running(&self) -> usize {
        let revoked: Vec<_> =
            self.leases.iter().filter_map(|lease| lease.revoke_running(&self.context)).collect();
        for current in &revoked {
            self.context.counts.abandoned.fetch_add(1, Ordering::Relaxed);
            let rest = |builder: OutcomeBuilder<'_>| {
                Ok(builder.requeue_rest(current.emitted_up_to)?.into_iter().collect())
            };
            self.finish_batch(current, rest).await;
        }
        revoked.len()
    }

    /// Returns the leases of all slots, by slot number.
    pub(crate) fn leases(&self) -> Vec<Arc<SlotLease>> {
        self.leases.clone()
    }

    /// Watches time limits, and tasks whose job was stopped. Returns only if no thread can be
    /// started.
    pub(crate) async fn watch_deadlines(&self) -> WorkerError {
        let mut stops = self.context.tracker.subscribe_ends();
        loop {
            let mut next: Option<Instant> = None;
            for (lease, number) in self.leases.iter().zip(0..) {
                match lease.check_deadlines(Instant::now(), self.stop_grace, &self.context) {
                    DeadlineCheck::NoDeadline => {}
                    DeadlineCheck::Pending(end) => next = Some(next.map_or(end, |next| next.min(end))),
                    DeadlineCheck::Stopped(current, task) => {
                        self.abandon_stopped(&current, &task).await;
                        if let Err(error) = self.spawn_slot(number, lease) {
                            return error;
                        }
                    }
                    DeadlineCheck::Overdue(current, running) => {
                        self.abandon_overdue(&current, running).await;
                        // At once, since the end of outcomes waits for the thread of each lease.
                        if let Err(error) = self.spawn_slot(number, lease) {
                            return error;
                        }
                    }
                }
            }
            let due = async {
                match next {
                    Some(end) => tokio::time::sleep_until(end.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                Ok(()) = stops.changed() => {}
                () = due => {}
            }
        }
    }

    /// Fails the overdue task, and requeues the rest of its batch.
    async fn abandon_overdue(&self, current: &CurrentBatch, running: TimedTask) {
        let stuck = self.context.counts.stuck.load(Ordering::Relaxed);
        self.context.counts.errors.fetch_add(1, Ordering::Relaxed);
        let build_messages = |builder: OutcomeBuilder<'_>| {
            tracing::warn!(
                job = %builder.batch.job, index = %running.index, age = ?running.began.elapsed(),
                limit = ?builder.batch.policy.task_timeout().unwrap_or_default(), stuck,
                "a task exceeded its time limit and does not call cx.check(); abandoning its thread \
                 (hint: call cx.check() now and then)"
            );
            let messages = builder.fail_overdue(running.index, current.emitted_up_to)?;
            builder.count(if count_retries(&messages) > 0 { "retried" } else { "failed" }, 1);
            Ok(messages)
        };
        self.finish_batch(current, build_messages).await;
        self.check_stuck_limit(stuck);
    }

    /// Gives up a task that goes on though its job was stopped: it has no outcome, and the rest of
    /// its batch is skipped.
    async fn abandon_stopped(&self, current: &CurrentBatch, task: &HeldTask) {
        let stuck = self.context.counts.stuck.load(Ordering::Relaxed);
        let HeldTask { batch, index, since, .. } = task;
        tracing::warn!(
            job = %batch.job, kind = %batch.kind, %index, age = ?since.elapsed(), grace = ?self.stop_grace, stuck,
            "a task goes on after its job was stopped; its slot gets another thread \
             (hint: call cx.check() now and then)"
        );
        let skip_rest = |builder: OutcomeBuilder<'_>| {
            let first = builder.batch.first;
            let emitted = current.emitted_up_to.max(first).0 - first.0;
            builder.count("skipped", u64::from(builder.batch.count).saturating_sub(emitted));
            Ok(Vec::new())
        };
        self.finish_batch(current, skip_rest).await;
        self.check_stuck_limit(stuck);
    }

    fn check_stuck_limit(&self, stuck: u32) {
        if stuck > self.stuck_max() {
            self.stuck_limit_reached.cancel();
        }
    }

    /// Publishes the messages for a batch whose lease was revoked, in place of its slot.
    async fn finish_batch(
        &self,
        current: &CurrentBatch,
        build_messages: impl FnOnce(OutcomeBuilder<'_>) -> Result<Vec<Outgoing>, Malformed>,
    ) {
        let BatchDelivery { message, from, in_flight, .. } = &*current.delivery;
        let messages = wire::decode::<Batch<'_>>(message)
            .and_then(|batch| {
                let headers = &message.headers;
                build_messages(OutcomeBuilder { context: &self.context, batch: &batch, headers, from: *from })
            })
            .unwrap_or_else(|malformed| {
                vec![self.context.dead_letter(message.clone(), *from, &malformed.reason)]
            });
        self.outbound_queue.send_async(PublishRequest::new(messages.into(), in_flight)).await;
        in_flight.complete_part();
        self.context.counts.batch_finished();
    }

    fn stuck_max(&self) -> u32 {
        u32::try_from(self.leases.len()).unwrap_or(u32::MAX).saturating_mul(STUCK_PER_SLOT)
    }
}
