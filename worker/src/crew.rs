//! The threads of a worker: starts them, and replaces those that are stuck in a task.

use std::{
    future::pending,
    num::NonZeroU16,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use gristmill_shared::wire::{self, Batch};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    WorkerError,
    handoff::Handoff,
    seat::{Look, Running, Seat, Turn},
    sequel::Sequel,
    shop::{Shop, handoff},
    slot::{self, Waiting, Work},
};

/// So many threads for each slot may be stuck; with more of them the worker ends, since only that ends them.
const STUCK_PER_SLOT: u32 = 1;

/// The threads of a worker.
#[derive(Debug)]
pub(crate) struct Crew {
    shop: Arc<Shop>,
    seats: Vec<Arc<Seat>>,
    waiting: Waiting,
    handoffs: flume::Sender<Handoff>,
    wake: Arc<Notify>,
    ends: (flume::Sender<bool>, flume::Receiver<bool>),
    /// Given when too many are stuck.
    pub(crate) too_many_stuck: CancellationToken,
}

impl Crew {
    /// Starts a thread for each slot.
    pub(crate) fn start(
        slots: NonZeroU16,
        shop: Arc<Shop>,
        waiting: Waiting,
        handoffs: flume::Sender<Handoff>,
    ) -> Result<Self, WorkerError> {
        let wake = Arc::new(Notify::new());
        let seats: Vec<_> = (0..slots.get()).map(|_| Seat::new(Arc::clone(&wake))).collect();
        let ends = flume::bounded(seats.len());
        let crew =
            Self { shop, seats, waiting, handoffs, wake, ends, too_many_stuck: CancellationToken::new() };
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

    /// Waits until each seat's thread has ended, but only for `grace` after the worker began to leave; returns how many
    /// still run then.
    pub(crate) async fn ended(
        &self,
        leaving: &CancellationToken,
        grace: Duration,
    ) -> Result<u32, WorkerError> {
        let too_long = async {
            leaving.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        let mut too_long = std::pin::pin!(too_long);
        for left in (1..=self.seats.len()).rev() {
            tokio::select! {
                in_order = self.ends.1.recv_async() => {
                    if in_order != Ok(true) {
                        return Err(WorkerError::Died); // it panicked outside user code
                    }
                }
                () = &mut too_long => return Ok(u32::try_from(left).unwrap_or(u32::MAX)),
            }
        }
        Ok(0)
    }

    /// Watches over time limits. Never ends, unless no thread can be started.
    pub(crate) async fn watch(&self) -> WorkerError {
        loop {
            let mut next: Option<Instant> = None;
            for (number, seat) in self.seats.iter().enumerate() {
                match seat.look(Instant::now(), &self.shop) {
                    Look::Idle => {}
                    Look::Until(end) => next = Some(next.map_or(end, |next| next.min(end))),
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
                () = due => {}
            }
        }
    }

    /// The overdue task has failed, the rest of its batch is given back.
    async fn give_up(&self, turn: &Turn, running: Running) {
        let Work { message, from, batch: in_hand, .. } = &*turn.work;
        let stuck = self.shop.counts.stuck.load(Ordering::Relaxed);
        let messages = wire::decode::<Batch<'_>>(message).and_then(|batch| {
            tracing::warn!(
                job = %batch.job, index = %running.index, age = ?running.began.elapsed(),
                limit = ?batch.policy.task_timeout().unwrap_or_default(), stuck,
                "a task runs on long after its time limit, which it does not look at; leaving its thread behind \
                 (hint: call cx.check() now and then)"
            );
            let sequel = Sequel { shop: &self.shop, batch: &batch, headers: &message.headers, from: *from };
            sequel.of_overdue(running.index, turn.handed_on)
        });
        let messages = messages
            .unwrap_or_else(|malformed| vec![self.shop.bury(message.clone(), *from, &malformed.reason)]);
        self.shop.counts.errors.fetch_add(1, Ordering::Relaxed);
        // Fails only when the worker ends with an error; the batch then stays unsettled.
        let _ = self.handoffs.send_async(handoff(messages, in_hand)).await;
        in_hand.close();
        self.shop.counts.busy.fetch_sub(1, Ordering::Relaxed);
        if stuck > self.stuck_max() {
            self.too_many_stuck.cancel();
        }
    }

    fn stuck_max(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX).saturating_mul(STUCK_PER_SLOT)
    }
}
