//! A transport that delivers every message several times, in random order.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::Notify;

use super::{SeededRng, decorator::TransportDecorator};
use crate::{Consumer, Delivery, Queue, Receipt, Settlement, Settler, Token, Transport, TransportError};

/// A wrapper around any transport that delivers every message of a work queue several times, in
/// another order.
///
/// Brokers redeliver once in a while; this one always does. A pipeline, or a worker in another
/// language, that gives the same result over it counts no task twice. Copies are settled one by
/// one. The message is settled with its last copy: acked, unless a copy was requeued. The prefetch
/// bounds the unsettled copies and the reordering: at most `prefetch` messages and their copies
/// overtake a message.
///
/// ```
/// # use gristmill_shared::{testing::RepeatingTransport, memory::MemoryTransport, *};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), TransportError> {
/// let transport = RepeatingTransport::new(MemoryTransport::new(), 3, 1);
/// let queue = QueueRole::Tasks.of(&Lane::default());
/// transport.open_lane(&queue.lane).await?;
/// let to = Address::Queue(queue.clone());
/// let publisher = transport.publisher().await?;
/// let answers = publisher.publish(vec![Outgoing { to, message: Message::default() }]).await;
/// assert_eq!(answers, [Published::Confirmed]);
///
/// let mut consumer = transport.consume(&queue, 10).await?;
/// let copies = consumer.recv(10).await?;
/// assert_eq!(copies.len(), 3);
/// copies.into_iter().for_each(|copy| copy.receipt.ack());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RepeatingTransport {
    inner: Arc<dyn Transport>,
    times: usize,
    rng: Arc<SeededRng>,
}

impl RepeatingTransport {
    /// Wraps `inner`. Each message is delivered `times` times (0 counts as 1), in an order that
    /// `seed` determines.
    pub fn new(inner: Arc<dyn Transport>, times: u16, seed: u64) -> Arc<Self> {
        Arc::new(Self { inner, times: usize::from(times).max(1), rng: Arc::new(SeededRng::new(seed)) })
    }
}

#[async_trait]
impl TransportDecorator for RepeatingTransport {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        Ok(Box::new(RepeatingConsumer {
            inner: self.inner.consume(queue, prefetch).await?,
            times: self.times,
            rng: Arc::clone(&self.rng),
            prefetch: usize::from(prefetch).max(1),
            unsettled: Arc::default(),
            waiting: Vec::new(),
            ended: false,
        }))
    }
}

impl fmt::Display for RepeatingTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[derive(Debug)]
struct RepeatingConsumer {
    inner: Box<dyn Consumer>,
    times: usize,
    rng: Arc<SeededRng>,
    prefetch: usize,
    unsettled: Arc<UnsettledCopies>,
    /// Copies that `recv` has not returned yet, of at most `prefetch` messages.
    waiting: Vec<Delivery>,
    /// True if the inner consumer was stopped and has returned everything.
    ended: bool,
}

/// The number of returned copies that are unsettled.
#[derive(Debug, Default)]
struct UnsettledCopies {
    count: AtomicUsize,
    fewer: Notify,
}

impl RepeatingConsumer {
    fn add_copies(&mut self, deliveries: Vec<Delivery>) {
        self.ended |= deliveries.is_empty();
        for mut delivery in deliveries {
            let copies = Arc::new(Copies {
                receipt: Mutex::new(None),
                left: AtomicUsize::new(self.times),
                requeue: AtomicBool::new(false),
                unsettled: Arc::clone(&self.unsettled),
            });
            let receipt = || Receipt::new(Token { generation: 0, tag: 0 }, Arc::clone(&copies) as _);
            let original = mem::replace(&mut delivery.receipt, receipt());
            *copies.receipt.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
            for _ in 1..self.times {
                let message = delivery.message.clone();
                self.waiting.push(Delivery { message, deliveries_before: 1, receipt: receipt() });
            }
            self.waiting.push(delivery);
        }
    }

    fn take_waiting(&mut self, max: usize) -> Vec<Delivery> {
        let room = self.prefetch.saturating_sub(self.unsettled.count.load(Ordering::Acquire));
        let count = max.max(1).min(room).min(self.waiting.len());
        self.unsettled.count.fetch_add(count, Ordering::AcqRel);
        (0..count).map(|_| self.waiting.swap_remove(self.rng.draw_below(self.waiting.len()))).collect()
    }
}

#[async_trait]
impl Consumer for RepeatingConsumer {
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        loop {
            // Takes everything that is available, so that there is an order to change.
            if !self.ended
                && let Some(deliveries) = self.inner.recv(self.prefetch).now_or_never()
            {
                self.add_copies(deliveries?);
            }
            let some = self.take_waiting(max);
            if !some.is_empty() || (self.ended && self.waiting.is_empty()) {
                return Ok(some);
            }
            tokio::select! {
                deliveries = self.inner.recv(self.prefetch), if !self.ended => self.add_copies(deliveries?),
                () = self.unsettled.fewer.notified() => {}
            }
        }
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        self.inner.stop().await
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

/// The copies of one delivery.
#[derive(Debug)]
struct Copies {
    /// The receipt of the original delivery, until it is settled.
    receipt: Mutex<Option<Receipt>>,
    left: AtomicUsize,
    requeue: AtomicBool,
    unsettled: Arc<UnsettledCopies>,
}

impl Settler for Copies {
    fn settle(&self, _: Token, how: Settlement) {
        self.requeue.fetch_or(how == Settlement::Requeue, Ordering::AcqRel);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(receipt) = self.receipt.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            if self.requeue.load(Ordering::Acquire) { receipt.requeue() } else { receipt.ack() }
        }
        self.unsettled.count.fetch_sub(1, Ordering::AcqRel);
        self.unsettled.fewer.notify_one();
    }

    fn extend(&self, _: Token) {
        if let Some(receipt) = &*self.receipt.lock().unwrap_or_else(PoisonError::into_inner) {
            receipt.extend();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        Address, Lane, Message, Outgoing, QueueRole,
        conformance::{self, ALL_PROMISES},
        memory::MemoryTransport,
    };

    async fn numbered(count: u32) -> (Arc<MemoryTransport>, Queue) {
        let memory = MemoryTransport::new();
        let queue = QueueRole::Tasks.of(&Lane::default());
        memory.open_lane(&queue.lane).await.unwrap();
        let to = |id: u32| {
            let message = Message { id: id.to_string(), ..Message::default() };
            Outgoing { to: Address::Queue(queue.clone()), message }
        };
        drop(memory.publisher().await.unwrap().publish((0..count).map(to).collect()).await);
        (memory, queue)
    }

    #[tokio::test(start_paused = true)]
    async fn each_message_repeats_within_prefetch() {
        let (memory, queue) = numbered(100).await;
        let transport: Arc<dyn Transport> = RepeatingTransport::new(memory.connect(), 3, 7);
        let mut consumer = transport.consume(&queue, 10).await.unwrap();
        let (mut times, mut order) = (BTreeMap::<String, u32>::new(), Vec::new());
        while order.len() < 300 {
            let copies = consumer.recv(50).await.unwrap();
            assert!(copies.len() <= 10, "{} are unsettled", copies.len());
            for copy in copies {
                *times.entry(copy.message.id.clone()).or_default() += 1;
                order.push(copy.message.id.parse::<u32>().unwrap());
                copy.receipt.ack();
            }
        }
        assert!(times.len() == 100 && times.values().all(|times| *times == 3), "{times:?}");
        assert!(!order.is_sorted());
        drop(consumer);
        let mut empty = memory.consume(&queue, 10).await.unwrap();
        assert!(timeout(Duration::from_secs(1), empty.recv(1)).await.is_err(), "something was not settled");
    }

    #[tokio::test(start_paused = true)]
    async fn last_copy_settles_message() {
        let (memory, queue) = numbered(1).await;
        let transport: Arc<dyn Transport> = RepeatingTransport::new(memory.connect(), 2, 0);
        let mut consumer = transport.consume(&queue, 5).await.unwrap();
        let mut copies = consumer.recv(5).await.unwrap();
        assert_eq!(copies.len(), 2);
        copies.remove(0).receipt.requeue();
        assert!(timeout(Duration::from_secs(1), consumer.recv(5)).await.is_err(), "one is not settled");
        copies.remove(0).receipt.ack();
        assert_eq!(consumer.recv(5).await.unwrap().len(), 2);
    }

    /// With one delivery each, the wrapper keeps every promise. With copies it breaks some on
    /// purpose.
    #[tokio::test(start_paused = true)]
    async fn single_delivery_keeps_promises() {
        let broker = MemoryTransport::new();
        let connect = conformance::connect(move || {
            let connection = RepeatingTransport::new(broker.connect(), 1, 3);
            async { connection }
        });
        for promise in ALL_PROMISES {
            // The wrapper reorders messages and hides generations; every promise holds regardless.
            promise.check(&connect).await.unwrap_or_else(|seen| panic!("{}: {seen}", promise.name));
        }
    }
}
