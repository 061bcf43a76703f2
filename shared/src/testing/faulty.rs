//! A transport that injects the faults of networks and brokers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use super::{SeededRng, decorator::TransportDecorator};
use crate::{Address, Consumer, Delivery, Outgoing, Published, Publisher, Queue, Transport, TransportError};

/// The rates of faults, in thousandths of the published messages and of the calls to `recv`.
///
/// After an error a producer resends the messages of the last second. At rates that are too high it
/// never succeeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRates {
    /// Messages answered with [`Published::Unknown`]; half of them are stored.
    pub unknown: u16,
    /// Messages answered with [`Published::Nacked`].
    pub rejected: u16,
    /// Messages for queues answered with [`Published::Unroutable`].
    pub unroutable: u16,
    /// Consumers that are disconnected for good. Their unsettled messages are redelivered.
    pub disconnected: u16,
    /// Consumers whose connection is lost and comes back. Their unsettled messages are redelivered,
    /// and their old receipts do nothing.
    pub reconnected: u16,
    /// The longest extra delay of every call.
    pub delay: Duration,
}

impl Default for FaultRates {
    /// Rates at which a job of some hundred messages ends, and meets every fault.
    fn default() -> Self {
        let delay = Duration::from_millis(1);
        Self { unknown: 4, rejected: 50, unroutable: 2, disconnected: 10, reconnected: 20, delay }
    }
}

/// The faults of all connections that share it: their rates and their counts.
#[derive(Debug)]
pub struct Faults {
    rates: FaultRates,
    rng: SeededRng,
    counts: [AtomicU64; FAULT_KINDS],
}

/// The number of kinds of fault, as [`FaultCounts`] lists them.
const FAULT_KINDS: usize = 6;

#[derive(Clone, Copy)]
enum FaultKind {
    UnknownStored,
    UnknownNotStored,
    Rejected,
    Unroutable,
    Disconnected,
    Reconnected,
}

/// The number of injected faults, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultCounts {
    /// Messages that were stored, with the answer unknown.
    pub unknown_stored: u64,
    /// Messages that were not stored, with the answer unknown.
    pub unknown_not_stored: u64,
    /// Messages that were rejected.
    pub rejected: u64,
    /// Messages that were answered as unroutable.
    pub unroutable: u64,
    /// Consumers disconnected for good.
    pub disconnected: u64,
    /// Consumers whose connection came back.
    pub reconnected: u64,
}

impl Faults {
    /// Creates faults at these rates. `seed` determines the sequence.
    #[must_use]
    pub fn new(seed: u64, rates: FaultRates) -> Arc<Self> {
        Arc::new(Self { rates, rng: SeededRng::new(seed), counts: Default::default() })
    }

    /// Returns the number of faults so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        let count = |fault: FaultKind| self.counts[fault as usize].load(Ordering::Relaxed);
        FaultCounts {
            unknown_stored: count(FaultKind::UnknownStored),
            unknown_not_stored: count(FaultKind::UnknownNotStored),
            rejected: count(FaultKind::Rejected),
            unroutable: count(FaultKind::Unroutable),
            disconnected: count(FaultKind::Disconnected),
            reconnected: count(FaultKind::Reconnected),
        }
    }

    /// Draws one of these faults, or none. Each has a chance in thousandths.
    fn draw<const N: usize>(&self, chances: [(FaultKind, u16); N]) -> Option<FaultKind> {
        let mut draw = self.rng.draw_below(1_000);
        for (fault, chance) in chances {
            match draw.checked_sub(usize::from(chance)) {
                None => {
                    self.counts[fault as usize].fetch_add(1, Ordering::Relaxed);
                    return Some(fault);
                }
                Some(left) => draw = left,
            }
        }
        None
    }

    async fn pause(&self) {
        let most = usize::try_from(self.rates.delay.as_micros()).unwrap_or(usize::MAX);
        if most > 0 {
            tokio::time::sleep(Duration::from_micros(self.rng.draw_below(most) as u64)).await;
        }
    }
}

/// A wrapper around any transport that loses messages or answers, rejects messages, and disconnects
/// consumers.
///
/// A role on top of it sometimes ends with an error, as it does when its broker goes away. Restart
/// it then.
///
/// ```
/// # use gristmill_shared::testing::{FaultRates, Faults, FaultyTransport};
/// # use gristmill_shared::{memory::MemoryTransport, *};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), TransportError> {
/// let faults = Faults::new(7, FaultRates { rejected: 500, ..FaultRates::default() });
/// let transport = FaultyTransport::new(MemoryTransport::new(), &faults);
/// transport.open_lane(&Lane::default()).await?;
/// let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
/// let batch = vec![Outgoing { to, message: Message::default() }; 100];
/// let answers = transport.publisher().await?.publish(batch).await;
/// let rejected = answers.iter().filter(|answer| **answer == Published::Nacked).count();
/// assert_eq!(faults.counts().rejected, rejected as u64);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FaultyTransport {
    inner: Arc<dyn Transport>,
    faults: Arc<Faults>,
}

impl FaultyTransport {
    /// Wraps `inner` with these faults.
    pub fn new(inner: Arc<dyn Transport>, faults: &Arc<Faults>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Arc::clone(faults) })
    }
}

#[async_trait]
impl TransportDecorator for FaultyTransport {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        let inner = self.inner.publisher().await?;
        Ok(Arc::new(FaultyPublisher { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        Ok(Box::new(FaultyConsumer {
            inner: Some(self.inner.consume(queue, prefetch).await?),
            transport: Arc::clone(&self.inner),
            queue: queue.clone(),
            prefetch,
            faults: Arc::clone(&self.faults),
            state: FaultyState::Consuming,
        }))
    }
}

impl fmt::Display for FaultyTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[derive(Debug)]
struct FaultyPublisher {
    inner: Arc<dyn Publisher>,
    faults: Arc<Faults>,
}

impl FaultyPublisher {
    fn draw(&self, outgoing: &Outgoing) -> Option<FaultKind> {
        let FaultRates { unknown, rejected, unroutable, .. } = self.faults.rates;
        let unroutable = if matches!(outgoing.to, Address::Queue(_)) { unroutable } else { 0 };
        self.faults.draw([
            (FaultKind::UnknownStored, unknown / 2),
            (FaultKind::UnknownNotStored, unknown - unknown / 2),
            (FaultKind::Rejected, rejected),
            (FaultKind::Unroutable, unroutable),
        ])
    }
}

#[async_trait]
impl Publisher for FaultyPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        self.faults.pause().await;
        let mut answers: Vec<Option<Published>> = Vec::with_capacity(batch.len());
        let mut sent = Vec::with_capacity(batch.len());
        for outgoing in batch {
            let (answer, send) = match self.draw(&outgoing) {
                Some(FaultKind::UnknownStored) => (Some(Published::Unknown), true),
                Some(FaultKind::UnknownNotStored) => (Some(Published::Unknown), false),
                Some(FaultKind::Rejected) => (Some(Published::Nacked), false),
                Some(FaultKind::Unroutable) => (Some(Published::Unroutable), false),
                Some(FaultKind::Disconnected | FaultKind::Reconnected) | None => (None, true),
            };
            answers.push(answer);
            if send {
                sent.push((answers.len() - 1, outgoing));
            }
        }
        let (places, sent): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
        for (place, answer) in places.into_iter().zip(self.inner.publish(sent).await) {
            answers[place].get_or_insert(answer);
        }
        self.faults.pause().await;
        answers.into_iter().map(|answer| answer.unwrap_or(Published::Unknown)).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FaultyState {
    Consuming,
    /// Stopped; no more faults are injected.
    Stopped,
    /// Disconnected for good.
    Disconnected,
}

#[derive(Debug)]
struct FaultyConsumer {
    /// `None` while the consumer is disconnected.
    inner: Option<Box<dyn Consumer>>,
    transport: Arc<dyn Transport>,
    queue: Queue,
    prefetch: u16,
    faults: Arc<Faults>,
    state: FaultyState,
}

impl FaultyConsumer {
    fn inject_fault(&mut self) {
        let FaultRates { disconnected, reconnected, .. } = self.faults.rates;
        match self
            .faults
            .draw([(FaultKind::Disconnected, disconnected), (FaultKind::Reconnected, reconnected)])
        {
            None => {}
            Some(FaultKind::Disconnected) => (self.inner, self.state) = (None, FaultyState::Disconnected),
            Some(_) => self.inner = None,
        }
    }

    fn disconnected(&self) -> TransportError {
        TransportError::Disconnected {
            transport: self.transport.to_string(),
            reason: "a fault that was asked for".into(),
        }
    }
}

#[async_trait]
impl Consumer for FaultyConsumer {
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        self.faults.pause().await;
        if self.state == FaultyState::Consuming {
            self.inject_fault();
        }
        if self.state == FaultyState::Disconnected {
            return Err(self.disconnected());
        }
        let inner = match &mut self.inner {
            Some(inner) => inner,
            None if self.state == FaultyState::Stopped => return Ok(Vec::new()), // stopped while disconnected
            inner => inner.insert(self.transport.consume(&self.queue, self.prefetch).await?),
        };
        let mut deliveries = inner.recv(max).await?;
        for delivery in &mut deliveries {
            // Faults are far more frequent here than in production and kill no worker, so they must
            // not count as losses.
            delivery.deliveries_before = delivery.deliveries_before.min(1);
        }
        Ok(deliveries)
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.state == FaultyState::Disconnected {
            return Err(self.disconnected());
        }
        self.state = FaultyState::Stopped;
        match &mut self.inner {
            Some(inner) => inner.stop().await,
            None => Ok(()),
        }
    }

    async fn close(self: Box<Self>) {
        if let Some(inner) = self.inner {
            inner.close().await;
        }
    }
}
