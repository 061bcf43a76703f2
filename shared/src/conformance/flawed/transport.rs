//! A transport with one flaw: its queues and its publishing.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::watch;

use super::{
    Flaw,
    readers::{FlawedEvents, FlawedJournal},
    receipts::{FlawedConsumer, Slot},
};
use crate::{
    Address, Capabilities, Consumer, EventFilter, EventReader, Headers, Health, JournalReader, Lane, Message,
    Outgoing, Published, Publisher, Queue, QueueRole, Receipt, RetryDelay, Shards, Topic, Transport,
    TransportError,
};

#[derive(Debug)]
pub(super) struct Flawed {
    inner: Arc<dyn Transport>,
    flaw: Flaw,
    memory: Arc<Memory>,
    closed: AtomicBool,
}

/// What the flawed connections of one broker remember.
#[derive(Debug, Default)]
pub(super) struct Memory {
    connections: Mutex<Vec<Arc<dyn Transport>>>,
    /// The lane that was opened first.
    lane: OnceLock<Lane>,
    last_answers: Mutex<Vec<Published>>,
    rejected: Mutex<Option<Outgoing>>,
    pub(super) events: Mutex<VecDeque<Message>>,
    pub(super) newest: Mutex<HashMap<String, Slot>>,
    pub(super) in_order: Mutex<VecDeque<(u64, Option<Receipt>)>>,
    pub(super) held_back: Mutex<Vec<Receipt>>,
}

impl Flawed {
    pub(super) fn new(inner: Arc<dyn Transport>, flaw: Flaw, memory: Arc<Memory>) -> Self {
        memory.connections.lock().unwrap().push(Arc::clone(&inner));
        Self { inner, flaw, memory, closed: AtomicBool::new(false) }
    }

    fn alive(&self) -> Result<(), TransportError> {
        let (transport, reason) = ("flawed".into(), "closed".into());
        if self.closed.load(Ordering::Relaxed) {
            return Err(TransportError::Disconnected { transport, reason });
        }
        Ok(())
    }
}

#[async_trait]
impl Transport for Flawed {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.alive()?;
        self.memory.lane.get_or_init(|| lane.clone());
        self.inner.open_lane(lane).await?;
        if self.flaw == Flaw::EmptiesOnOpen {
            let mut consumer = self.inner.consume(&QueueRole::Tasks.of(lane), 100).await?;
            while let Some(Ok(deliveries)) = consumer.recv(100).now_or_never() {
                deliveries.into_iter().for_each(|delivery| delivery.receipt.ack());
            }
        }
        Ok(())
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.alive()?;
        let there = self.inner.open_shards(lane, at_least).await?;
        Ok(if self.flaw == Flaw::CountsOwnShards { at_least } else { there })
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.alive()?;
        let inner = self.inner.publisher().await?;
        Ok(Arc::new(FlawedPublisher { inner, flaw: self.flaw, memory: Arc::clone(&self.memory) }))
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        self.alive()?;
        let queue = flawed_queue(self.flaw, queue.clone());
        if self.flaw == Flaw::ConsumesWhatIsMissing {
            self.inner.open_lane(&queue.lane).await?;
        }
        let prefetch = if self.flaw == Flaw::IgnoresPrefetch { 2 * prefetch } else { prefetch };
        let inner = self.inner.consume(&queue, prefetch).await?;
        Ok(Box::new(FlawedConsumer::new(inner, self.flaw, Arc::clone(&self.memory))))
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.alive()?;
        Ok(Box::new(FlawedJournal::new(self.inner.journal().await?, self.flaw)))
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.alive()?;
        let inner = self.inner.events(filter).await?;
        Ok(Box::new(FlawedEvents::new(inner, self.flaw, &self.memory)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    async fn close(&self) {
        match self.flaw {
            Flaw::ClosesWithoutWaking => self.closed.store(true, Ordering::Relaxed),
            Flaw::ClosesWithoutTelling => {}
            Flaw::ClosesTheOthersToo => {
                let all = self.memory.connections.lock().unwrap().split_off(0);
                futures::future::join_all(all.iter().map(|connection| connection.close())).await;
            }
            _ => self.inner.close().await,
        }
    }
}

/// The queue that is taken for that one.
fn flawed_queue(flaw: Flaw, mut queue: Queue) -> Queue {
    queue.role = match (flaw, queue.role) {
        (Flaw::AlwaysOneActive, QueueRole::Tasks) => QueueRole::Results,
        (Flaw::NeverOneActive, QueueRole::Results) => QueueRole::Tasks,
        (Flaw::RipensAtOnce, QueueRole::Retry(RetryDelay::Second)) => QueueRole::Again,
        (Flaw::RipensLate, QueueRole::Retry(RetryDelay::Second)) => QueueRole::Retry(RetryDelay::TenSeconds),
        (_, role) => role,
    };
    queue
}

impl fmt::Display for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.flaw == Flaw::ShowsPassword {
            return f.write_str("amqp://guest:secret@broker:5672");
        }
        f.write_str("amqp://guest@broker:5672")
    }
}

#[derive(Debug)]
struct FlawedPublisher {
    inner: Arc<dyn Publisher>,
    flaw: Flaw,
    memory: Arc<Memory>,
}

#[async_trait]
impl Publisher for FlawedPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let mut batch: Vec<_> = batch.into_iter().map(|outgoing| self.flawed(outgoing)).collect();
        let copy = batch.clone();
        let named = |id: &str| copy.iter().position(|outgoing| outgoing.message.id == id);
        if let (Flaw::StoresWhatItRejects, Some(_)) = (self.flaw, named("again")) {
            batch.splice(..0, self.memory.rejected.lock().unwrap().take());
        }
        let lost = named("500").filter(|_| self.flaw == Flaw::LosesWhatItStores);
        lost.map(|place| batch.remove(place));
        let mut answers = self.inner.publish(batch).await;
        match self.flaw {
            Flaw::ReversesAnswers => answers.reverse(),
            Flaw::StoresWhatHasNoQueue => answers.fill(Published::Stored),
            Flaw::NeverSaysFull => replace(&mut answers, &Published::Rejected, &Published::Stored),
            Flaw::LosesWhatItStores => lost.into_iter().for_each(|at| answers.insert(at, Published::Stored)),
            Flaw::StoresWhatItRejects if answers.len() > copy.len() => drop(answers.remove(0)),
            Flaw::StoresWhatItRejects if answers.last() == Some(&Published::Rejected) => {
                *self.memory.rejected.lock().unwrap() = copy.last().cloned();
            }
            Flaw::MixesUpCalls => {
                std::mem::swap(&mut answers, &mut self.memory.last_answers.lock().unwrap());
                if answers.is_empty() {
                    answers = vec![Published::Stored; copy.len()];
                }
            }
            Flaw::PublishesTwice => drop(self.inner.publish(copy).await),
            _ => {}
        }
        answers
    }
}

impl FlawedPublisher {
    fn flawed(&self, mut outgoing: Outgoing) -> Outgoing {
        let message = &mut outgoing.message;
        match (self.flaw, &mut outgoing.to) {
            (flaw, Address::Queue(queue)) => *queue = flawed_queue(flaw, queue.clone()),
            (Flaw::RepeatsEvents, Address::Events(_)) => {
                self.memory.events.lock().unwrap().push_back(message.clone());
            }
            (Flaw::MixesUpLanes, Address::Events(Topic::Job(lane, _) | Topic::Worker(lane, _))) => {
                *lane = self.memory.lane.get().unwrap().clone();
            }
            _ => {}
        }
        match self.flaw {
            Flaw::DropsHeaders => message.headers = Headers::default(),
            Flaw::CutsLargeBodies => message.body.truncate(crate::memory::MAX_MESSAGE),
            _ => {}
        }
        outgoing
    }
}

fn replace(answers: &mut [Published], from: &Published, to: &Published) {
    answers.iter_mut().filter(|answer| *answer == from).for_each(|answer| *answer = to.clone());
}
