//! The queue of batches that wait for a slot: consumers push several at a time, slots take one.
//!
//! Waking a task costs as much as a tiny batch, so a consumer is not woken for each batch that is
//! taken, but when as many batches are left as there are slots.

use std::{
    collections::VecDeque,
    mem,
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gristmill_shared::QueueRole;
use tokio::sync::Notify;

use crate::delivery::BatchDelivery;

/// The receiving half, for slots and for the tasks that requeue batches which no slot will begin.
#[derive(Clone, Debug)]
pub(crate) struct RunQueueReceiver(Arc<SharedRunQueue>);

/// The sending half, for consumers. The queue is closed when the last one is dropped.
#[derive(Debug)]
pub(crate) struct RunQueueSender(Arc<SharedRunQueue>);

/// The state and the notifications of both halves.
#[derive(Debug)]
struct SharedRunQueue {
    state: Mutex<RunQueueState>,
    /// Notifies threads of a new delivery, and of the end of the queue.
    available: Condvar,
    /// Notifies tasks of the same.
    available_async: Notify,
    /// Notifies senders that the queue is down to its low watermark.
    low: Notify,
    /// Notifies that a slot found the queue empty.
    idle_slot: Notify,
    /// Number of waiting deliveries at which senders are woken.
    low_watermark: usize,
}

#[derive(Debug, Default)]
struct RunQueueState {
    /// Suspects, which go first. The shorter the worker holds one, the less likely it still holds
    /// it when the process dies for another reason.
    suspects: VecDeque<BatchDelivery>,
    /// All others: at most `low_watermark` and one push of each sender.
    queue: VecDeque<BatchDelivery>,
    senders: usize,
    /// Number of slots that wait for a delivery.
    idle: usize,
    /// Number of deliveries taken so far.
    taken: u64,
    /// Number of requests to drop what has ended, which each slot serves before its next delivery.
    cleanups: u64,
}

/// Makes a queue whose low watermark is the number of slots.
pub(crate) fn run_queue(slots: usize) -> (RunQueueSender, RunQueueReceiver) {
    let state = Mutex::new(RunQueueState { senders: 1, ..RunQueueState::default() });
    let (available, available_async) = (Condvar::new(), Notify::new());
    let (low, idle_slot) = (Notify::new(), Notify::new());
    let shared =
        Arc::new(SharedRunQueue { state, available, available_async, low, idle_slot, low_watermark: slots });
    (RunQueueSender(Arc::clone(&shared)), RunQueueReceiver(shared))
}

impl SharedRunQueue {
    /// Locks the state. No code panics under this lock.
    fn state(&self) -> MutexGuard<'_, RunQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunQueueSender {
    /// Pushes all deliveries at once, and waits until the queue is down to its low watermark.
    /// Cancelled, it has still pushed all of them.
    pub(crate) async fn push(&self, deliveries: Vec<BatchDelivery>) {
        self.0.state().extend(deliveries);
        self.0.available.notify_all();
        self.0.available_async.notify_waiters();
        loop {
            let mut low = pin!(self.0.low.notified());
            low.as_mut().enable(); // notices all deliveries taken from here on
            if self.0.state().len() <= self.0.low_watermark {
                return;
            }
            low.await;
        }
    }

    /// Waits until no delivery has been taken for `time`, or for up to twice that.
    pub(crate) async fn wait_stalled(&self, time: Duration) {
        let mut taken = self.0.state().taken;
        loop {
            tokio::time::sleep(time).await;
            let now = self.0.state().taken;
            if mem::replace(&mut taken, now) == now {
                return;
            }
        }
    }
}

impl Clone for RunQueueSender {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for RunQueueSender {
    fn drop(&mut self) {
        self.0.state().senders -= 1;
        self.0.available.notify_all();
        self.0.available_async.notify_waiters();
    }
}

impl RunQueueReceiver {
    /// Blocks until a delivery is there; returns `None` once the queue is closed and empty. Calls
    /// `cleanup`, without the lock, if [`RunQueueReceiver::request_cleanup`] was called since
    /// `seen`, which is the slot's own count.
    pub(crate) fn next(&self, seen: &mut u64, cleanup: impl Fn()) -> Option<BatchDelivery> {
        let mut state = self.0.state();
        loop {
            if mem::replace(seen, state.cleanups) != state.cleanups {
                drop(state);
                cleanup();
                state = self.0.state();
            }
            if let Some(delivery) = self.take(&mut state) {
                return Some(delivery);
            }
            if state.senders == 0 {
                return None;
            }
            state.idle += 1;
            self.0.idle_slot.notify_waiters();
            state = self.0.available.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Asks each slot to clean up: at once if it waits for a delivery, otherwise before its next
    /// one.
    pub(crate) fn request_cleanup(&self) {
        self.0.state().cleanups += 1;
        self.0.available.notify_all();
    }

    /// Waits until a slot is idle.
    pub(crate) async fn wait_idle(&self) {
        loop {
            let mut idle_slot = pin!(self.0.idle_slot.notified());
            idle_slot.as_mut().enable(); // notices all that happens from here on
            if self.0.state().idle > 0 {
                return;
            }
            idle_slot.await;
        }
    }

    /// Waits for a delivery as [`RunQueueReceiver::next`] does. Cancel safe.
    pub(crate) async fn next_async(&self) -> Option<BatchDelivery> {
        loop {
            let mut available = pin!(self.0.available_async.notified());
            available.as_mut().enable();
            let (delivery, senders) = {
                let mut state = self.0.state();
                (self.take(&mut state), state.senders)
            };
            if delivery.is_some() || senders == 0 {
                return delivery;
            }
            available.await;
        }
    }

    fn take(&self, state: &mut RunQueueState) -> Option<BatchDelivery> {
        let delivery = state.suspects.pop_front().or_else(|| state.queue.pop_front())?;
        state.taken += 1;
        if state.len() == self.0.low_watermark {
            self.0.low.notify_waiters();
        }
        Some(delivery)
    }
}

impl RunQueueState {
    fn extend(&mut self, deliveries: Vec<BatchDelivery>) {
        for delivery in deliveries {
            match delivery.from {
                QueueRole::Suspect => self.suspects.push_back(delivery),
                _ => self.queue.push_back(delivery),
            }
        }
    }

    fn len(&self) -> usize {
        self.suspects.len() + self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn deliveries<const N: usize>(from: [QueueRole; N]) -> Vec<BatchDelivery> {
        from.into_iter().map(BatchDelivery::for_test).collect()
    }

    #[tokio::test]
    async fn suspects_go_first() {
        let (sender, receiver) = run_queue(4);
        sender.push(deliveries([QueueRole::Tasks, QueueRole::Requeued, QueueRole::Suspect])).await;
        drop(sender);
        let from = || receiver.next(&mut 0, || {}).map(|delivery| delivery.from);
        assert_eq!([from(), from()], [Some(QueueRole::Suspect), Some(QueueRole::Tasks)]);
        assert_eq!(receiver.next_async().await.map(|delivery| delivery.from), Some(QueueRole::Requeued));
        assert_eq!([from(), from()], [None, None]);
    }

    #[tokio::test]
    async fn push_waits_for_low_watermark() {
        let (sender, receiver) = run_queue(1);
        let mut pushed = pin!(sender.push(deliveries([QueueRole::Tasks; 3])));
        for _ in 0..2 {
            assert!(pushed.as_mut().now_or_never().is_none());
            receiver.next(&mut 0, || {}).unwrap();
        }
        pushed.await;
    }

    #[tokio::test]
    async fn receivers_wake_for_work_and_end() {
        let (sender, receiver) = run_queue(1);
        let mut next = pin!(receiver.next_async());
        assert!(next.as_mut().now_or_never().is_none());
        sender.push(deliveries([QueueRole::Requeued])).await;
        assert!(next.await.is_some());
        let taker = std::thread::spawn({
            let receiver = receiver.clone();
            move || receiver.next(&mut 0, || {}).is_none()
        });
        let mut next = pin!(receiver.next_async());
        assert!(next.as_mut().now_or_never().is_none());
        drop(sender);
        assert!(next.await.is_none() && taker.join().unwrap());
    }

    #[tokio::test]
    async fn each_idle_slot_cleans_up() {
        let (sender, receiver) = run_queue(2);
        let (cleaned, noticed) = flume::bounded(8);
        let slots = [1, 2].map(|number| {
            let (receiver, cleaned) = (receiver.clone(), cleaned.clone());
            std::thread::spawn(move || receiver.next(&mut 0, || cleaned.send(number).unwrap()).is_none())
        });
        receiver.wait_idle().await;
        receiver.request_cleanup();
        let both = async { (noticed.recv_async().await.unwrap(), noticed.recv_async().await.unwrap()) };
        let both = tokio::time::timeout(Duration::from_secs(10), both).await;
        let (first, second) = both.expect("each slot cleans up");
        assert_eq!(first + second, 3, "each slot, since each has state that the others do not know");
        drop(sender);
        assert!(slots.into_iter().all(|slot| slot.join().unwrap()));
        assert_eq!(noticed.drain().count(), 0, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn stall_means_no_delivery_taken() {
        let (sender, receiver) = run_queue(8);
        sender.push(deliveries([QueueRole::Tasks; 3])).await;
        let (start, second) = (tokio::time::Instant::now(), Duration::from_secs(1));
        let taking = async {
            for _ in 0..2 {
                tokio::time::sleep(second / 2).await;
                receiver.next(&mut 0, || {});
            }
        };
        tokio::join!(sender.wait_stalled(second), taking);
        let after = start.elapsed();
        assert!((second * 2..=second * 3).contains(&after), "{after:?}");
    }
}
