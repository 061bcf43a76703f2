//! The threads of a worker: starts them, and replaces those that are stuck in a task.

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
    lease::{Look, Running, Seat, Turn},
    slot,
};
use crate::{
    WorkerError,
    context::Shop,
    delivery::Work,
    outbound::{Handoff, Handoffs, Sequel, retried},
    run_queue::Waiting,
};

/// So many threads for each slot may be stuck; with more of them the worker ends, since only that ends them.
const STUCK_PER_SLOT: u32 = 1;

/// The threads of a worker.
#[derive(Debug)]
pub(crate) struct Crew {
    shop: Arc<Shop>,
    seats: Vec<Arc<Seat>>,
    waiting: Waiting,
    handoffs: Handoffs,
    wake: Arc<Notify>,
    ends: (flume::Sender<bool>, flume::Receiver<bool>),
    /// Time for which a task may go on after its job was stopped.
    stop_grace: Duration,
    /// Given when too many are stuck.
    pub(crate) too_many_stuck: CancellationToken,
}

impl Crew {
    /// Starts a thread for each slot.
    pub(crate) fn start(
        slots: NonZeroU16,
        stop_grace: Duration,
        shop: Arc<Shop>,
        waiting: Waiting,
        handoffs: Handoffs,
    ) -> Result<Self, WorkerError> {
        let wake = Arc::new(Notify::new());
        let seats: Vec<_> = (0..slots.get()).map(|_| Seat::new(Arc::clone(&wake))).collect();
        let ends = flume::bounded(seats.len());
        let too_many_stuck = CancellationToken::new();
        let crew = Self { shop, seats, waiting, handoffs, wake, ends, stop_grace, too_many_stuck };
        crew.seats.iter().enumerate().try_for_each(|(number, seat)| crew.hire(number, seat))?;
        Ok(crew)
    }

    fn hire(&self, number: usize, seat: &Arc<Seat>) -> Result<(), WorkerError> {
        let tenant = seat.sit(Arc::clone(&self.shop), self.ends.0.clone());
        let (shop, waiting, handoffs) = (Arc::clone(&self.shop), self.waiting.clone(), self.handoffs.clone());
        std::thread::Builder::new()
            .name(format!("slot-{number}"))
            .spawn(move || slot::run(&shop, &tenant, &waiting, &handoffs))
            .map(drop)
            .map_err(WorkerError::Threads)
    }

    /// Waits until each seat's thread has ended. `grace` after the worker began to leave, the batches of those that are
    /// still in one are handed back, as far as they were not handed on, and their threads are awaited no longer.
    pub(crate) async fn ended(
        &self,
        leaving: &CancellationToken,
        grace: Duration,
    ) -> Result<(), WorkerError> {
        let too_long = async {
            leaving.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        let mut too_long = std::pin::pin!(too_long.fuse());
        let mut left = self.seats.len();
        while left > 0 {
            tokio::select! {
                in_order = self.ends.1.recv_async() => {
                    if in_order != Ok(true) {
                        return Err(WorkerError::Died); // it panicked outside user code
                    }
                    left -= 1;
                }
                () = &mut too_long, if !too_long.is_terminated() => left -= self.abandon().await,
            }
        }
        Ok(())
    }

    /// Takes the seats and the batches of all who are in one, and hands back what is left of those. Returns how many.
    async fn abandon(&self) -> usize {
        let turns: Vec<_> = self.seats.iter().filter_map(|seat| seat.take(&self.shop)).collect();
        for turn in &turns {
            self.shop.counts.abandoned.fetch_add(1, Ordering::Relaxed);
            let rest = |sequel: Sequel<'_>| Ok(sequel.of_leaving(turn.handed_on)?.into_iter().collect());
            self.finish(turn, rest).await;
        }
        turns.len()
    }

    /// The seats of all slots, by their numbers.
    pub(crate) fn seats(&self) -> Vec<Arc<Seat>> {
        self.seats.clone()
    }

    /// Watches over time limits, and over tasks whose job was stopped. Never ends, unless no thread
    /// can be started.
    pub(crate) async fn watch(&self) -> WorkerError {
        let mut stops = self.shop.board.ends();
        loop {
            let mut next: Option<Instant> = None;
            for (number, seat) in self.seats.iter().enumerate() {
                match seat.look(Instant::now(), self.stop_grace, &self.shop) {
                    Look::Idle => {}
                    Look::Until(end) => next = Some(next.map_or(end, |next| next.min(end))),
                    Look::Stopped(turn, task) => {
                        self.give_up_stopped(&turn, &task).await;
                        if let Err(error) = self.hire(number, seat) {
                            return error;
                        }
                    }
                    Look::Overdue(turn, running) => {
                        self.give_up(&turn, running).await;
                        // Now, since the worker waits for a seat's thread before it takes no more outcomes.
                        if let Err(error) = self.hire(number, seat) {
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

    /// The overdue task has failed, the rest of its batch is given back.
    async fn give_up(&self, turn: &Turn, running: Running) {
        let stuck = self.shop.counts.stuck.load(Ordering::Relaxed);
        self.shop.counts.errors.fetch_add(1, Ordering::Relaxed);
        let given_up = |sequel: Sequel<'_>| {
            tracing::warn!(
                job = %sequel.batch.job, index = %running.index, age = ?running.began.elapsed(),
                limit = ?sequel.batch.policy.task_timeout().unwrap_or_default(), stuck,
                "a task runs on long after its time limit, which it does not look at; leaving its thread behind \
                 (hint: call cx.check() now and then)"
            );
            let messages = sequel.of_overdue(running.index, turn.handed_on)?;
            sequel.count(if retried(&messages) > 0 { "retried" } else { "failed" }, 1);
            Ok(messages)
        };
        self.finish(turn, given_up).await;
        self.end_if_too_many(stuck);
    }

    /// The task goes on though its job was stopped: it has no outcome, and the rest of its batch is
    /// skipped.
    async fn give_up_stopped(&self, turn: &Turn, task: &HeldTask) {
        let stuck = self.shop.counts.stuck.load(Ordering::Relaxed);
        let HeldTask { batch, index, since, .. } = task;
        tracing::warn!(
            job = %batch.job, kind = %batch.kind, %index, age = ?since.elapsed(), grace = ?self.stop_grace, stuck,
            "a task goes on after its job was stopped; its slot gets another thread \
             (hint: call cx.check() now and then)"
        );
        let skipped = |sequel: Sequel<'_>| {
            let first = sequel.batch.first;
            let handed_on = turn.handed_on.max(first).0 - first.0;
            sequel.count("skipped", u64::from(sequel.batch.count).saturating_sub(handed_on));
            Ok(Vec::new())
        };
        self.finish(turn, skipped).await;
        self.end_if_too_many(stuck);
    }

    fn end_if_too_many(&self, stuck: u32) {
        if stuck > self.stuck_max() {
            self.too_many_stuck.cancel();
        }
    }

    /// Does with a batch that was taken from its slot what the slot cannot do any more.
    async fn finish(
        &self,
        turn: &Turn,
        sequel_of: impl FnOnce(Sequel<'_>) -> Result<Vec<Outgoing>, Malformed>,
    ) {
        let Work { message, from, batch: in_hand, .. } = &*turn.work;
        let messages = wire::decode::<Batch<'_>>(message)
            .and_then(|batch| {
                let headers = &message.headers;
                sequel_of(Sequel { shop: &self.shop, batch: &batch, headers, from: *from })
            })
            .unwrap_or_else(|malformed| vec![self.shop.bury(message.clone(), *from, &malformed.reason)]);
        self.handoffs.send_async(Handoff::new(messages.into(), in_hand)).await;
        in_hand.close();
        self.shop.counts.ends();
    }

    fn stuck_max(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX).saturating_mul(STUCK_PER_SLOT)
    }
}
