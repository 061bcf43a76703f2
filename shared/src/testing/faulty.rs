//! A transport with faults, as a network and a broker have them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::Draws;
use crate::{
    Address, Capabilities, Consumer, Delivery, EventFilter, EventReader, Health, JournalReader, Lane,
    Outgoing, Published, Publisher, Queue, Shards, Transport, TransportError,
};

/// How often what goes wrong, in thousandths: of the messages that are published, and of the calls to `recv`.
///
/// A producer sends again, after an error, what it sent in the last second: it needs tries without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRates {
    /// [`Published::Unknown`]; half of these messages are stored.
    pub unknown: u16,
    /// [`Published::Rejected`].
    pub rejected: u16,
    /// [`Published::Unroutable`], of messages for queues.
    pub unroutable: u16,
    /// The consumer is disconnected for good, and what it held comes again.
    pub lost: u16,
    /// The consumer's connection is lost and comes back: what it held comes again, and its receipts do nothing.
    pub renewed: u16,
    /// Every call takes longer, by up to this.
    pub delay: Duration,
}

impl Default for FaultRates {
    /// Few enough that a job of some hundred messages ends, and enough that it meets each.
    fn default() -> Self {
        let delay = Duration::from_millis(1);
        Self { unknown: 4, rejected: 50, unroutable: 2, lost: 10, renewed: 20, delay }
    }
}

/// What goes wrong on all connections that share it, and how often it did.
#[derive(Debug)]
pub struct Faults {
    rates: FaultRates,
    draws: Draws,
    counts: [AtomicU64; FAULTS],
}

/// The kinds of fault, as [`FaultCounts`] lists them.
const FAULTS: usize = 6;

#[derive(Clone, Copy)]
enum Fault {
    UnknownStored,
    UnknownNotStored,
    Rejected,
    Unroutable,
    Lost,
    Renewed,
}

/// How often what went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultCounts {
    /// Messages that were stored, and the answer unknown.
    pub unknown_stored: u64,
    /// Messages that were not stored, and the answer unknown.
    pub unknown_not_stored: u64,
    /// Messages that were rejected.
    pub rejected: u64,
    /// Messages that had no queue.
    pub unroutable: u64,
    /// Consumers disconnected for good.
    pub lost: u64,
    /// Consumers whose connection came back.
    pub renewed: u64,
}

impl Faults {
    /// `seed` decides what goes wrong.
    #[must_use]
    pub fn new(seed: u64, rates: FaultRates) -> Arc<Self> {
        Arc::new(Self { rates, draws: Draws::new(seed), counts: Default::default() })
    }

    /// How often what went wrong so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        let of = |fault: Fault| self.counts[fault as usize].load(Ordering::Relaxed);
        FaultCounts {
            unknown_stored: of(Fault::UnknownStored),
            unknown_not_stored: of(Fault::UnknownNotStored),
            rejected: of(Fault::Rejected),
            unroutable: of(Fault::Unroutable),
            lost: of(Fault::Lost),
            renewed: of(Fault::Renewed),
        }
    }

    /// Draws one of these faults, or none. Each has its chance, in thousandths.
    fn draw<const N: usize>(&self, chances: [(Fault, u16); N]) -> Option<Fault> {
        let mut draw = self.draws.below(1_000);
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
            tokio::time::sleep(Duration::from_micros(self.draws.below(most) as u64)).await;
        }
    }
}

/// Any transport, but messages get lost on the way or their answers do, queues are full or gone, consumers are cut off.
///
/// A role over it ends with an error now and then, as it does when its broker goes: start it again.
///
/// ```
/// # use gristmill_shared::{testing::{FaultRates, Faults, Faulty}, memory::MemoryTransport, *};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), TransportError> {
/// let faults = Faults::new(7, FaultRates { rejected: 500, ..FaultRates::default() });
/// let transport = Faulty::new(MemoryTransport::new(), &faults);
/// transport.open_lane(&Lane::default()).await?;
/// let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
/// let batch = vec![Outgoing { to, message: Message::default() }; 100];
/// let answers = transport.publisher().await?.publish(batch).await;
/// let rejected = answers.iter().filter(|answer| **answer == Published::Rejected).count();
/// assert_eq!(faults.counts().rejected, rejected as u64);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Transport>,
    faults: Arc<Faults>,
}

impl Faulty {
    /// `inner` with these faults.
    pub fn new(inner: Arc<dyn Transport>, faults: &Arc<Faults>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Arc::clone(faults) })
    }
}

#[async_trait]
impl Transport for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.inner.open_lane(lane).await
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.inner.open_shards(lane, at_least).await
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
            state: State::Consuming,
        }))
    }
    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.inner.journal().await
    }
    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.inner.events(filter).await
    }
    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

impl fmt::Display for Faulty {
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
    fn draw(&self, outgoing: &Outgoing) -> Option<Fault> {
        let FaultRates { unknown, rejected, unroutable, .. } = self.faults.rates;
        let unroutable = if matches!(outgoing.to, Address::Queue(_)) { unroutable } else { 0 };
        self.faults.draw([
            (Fault::UnknownStored, unknown / 2),
            (Fault::UnknownNotStored, unknown - unknown / 2),
            (Fault::Rejected, rejected),
            (Fault::Unroutable, unroutable),
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
                Some(Fault::UnknownStored) => (Some(Published::Unknown), true),
                Some(Fault::UnknownNotStored) => (Some(Published::Unknown), false),
                Some(Fault::Rejected) => (Some(Published::Rejected), false),
                Some(Fault::Unroutable) => (Some(Published::Unroutable), false),
                Some(Fault::Lost | Fault::Renewed) | None => (None, true),
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
enum State {
    Consuming,
    /// Asked for nothing more; nothing goes wrong any more either.
    Stopped,
    /// For good.
    Lost,
}

#[derive(Debug)]
struct FaultyConsumer {
    /// `None` while it is lost.
    inner: Option<Box<dyn Consumer>>,
    transport: Arc<dyn Transport>,
    queue: Queue,
    prefetch: u16,
    faults: Arc<Faults>,
    state: State,
}

impl FaultyConsumer {
    fn go_wrong(&mut self) {
        let FaultRates { lost, renewed, .. } = self.faults.rates;
        match self.faults.draw([(Fault::Lost, lost), (Fault::Renewed, renewed)]) {
            None => {}
            Some(Fault::Lost) => (self.inner, self.state) = (None, State::Lost),
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
        if self.state == State::Consuming {
            self.go_wrong();
        }
        if self.state == State::Lost {
            return Err(self.disconnected());
        }
        let inner = match &mut self.inner {
            Some(inner) => inner,
            None if self.state == State::Stopped => return Ok(Vec::new()), // stopped while it was lost
            lost => lost.insert(self.transport.consume(&self.queue, self.prefetch).await?),
        };
        let mut deliveries = inner.recv(max).await?;
        for delivery in &mut deliveries {
            // Faults are far more frequent here than anywhere else, and no worker dies of them: they are no losses.
            delivery.deliveries_before = delivery.deliveries_before.min(1);
        }
        Ok(deliveries)
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.state == State::Lost {
            return Err(self.disconnected());
        }
        self.state = State::Stopped;
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
