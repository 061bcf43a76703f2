//! A transport with one flaw: its queues and its publishing.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::watch;

use super::{
    Flaw,
    flaw_memory::FlawMemory,
    readers::{FlawedEvents, FlawedJournal},
    receipts::FlawedConsumer,
};
use crate::{
    Address, Capabilities, Consumer, EventFilter, EventReader, Headers, Health, JournalReader, Lane,
    Outgoing, Published, Publisher, Queue, QueueRole, RetryDelay, Shards, Topic, Transport, TransportError,
};

#[derive(Debug)]
pub(super) struct FlawedTransport {
    inner: Arc<dyn Transport>,
    flaw: Flaw,
    memory: Arc<FlawMemory>,
    closed: AtomicBool,
}

impl FlawedTransport {
    pub(super) fn new(inner: Arc<dyn Transport>, flaw: Flaw, memory: Arc<FlawMemory>) -> Self {
        memory.connections.lock().unwrap().push(Arc::clone(&inner));
        Self { inner, flaw, memory, closed: AtomicBool::new(false) }
    }

    fn check_open(&self) -> Result<(), TransportError> {
        let (transport, reason) = ("flawed".into(), "closed".into());
        if self.closed.load(Ordering::Relaxed) {
            return Err(TransportError::Disconnected { transport, reason });
        }
        Ok(())
    }
}

#[async_trait]
impl Transport for FlawedTransport {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.check_open()?;
        self.memory.lane.get_or_init(|| lane.clone());
        self.inner.open_lane(lane).await?;
        if self.flaw == Flaw::PurgesOnOpen {
            let mut consumer = self.inner.consume(&QueueRole::Tasks.of(lane), 100).await?;
            while let Some(Ok(deliveries)) = consumer.recv(100).now_or_never() {
                deliveries.into_iter().for_each(|delivery| delivery.receipt.ack());
            }
        }
        Ok(())
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        self.check_open()?;
        let found = self.inner.open_shards(lane, at_least).await?;
        Ok(if self.flaw == Flaw::CountsOwnShards { at_least } else { found })
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.check_open()?;
        let inner = self.inner.publisher().await?;
        Ok(Arc::new(FlawedPublisher { inner, flaw: self.flaw, memory: Arc::clone(&self.memory) }))
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        self.check_open()?;
        let queue = flawed_queue(self.flaw, queue.clone());
        if self.flaw == Flaw::CreatesMissingQueue {
            self.inner.open_lane(&queue.lane).await?;
        }
        let prefetch = if self.flaw == Flaw::IgnoresPrefetch { 2 * prefetch } else { prefetch };
        let inner = self.inner.consume(&queue, prefetch).await?;
        Ok(Box::new(FlawedConsumer::new(inner, self.flaw, Arc::clone(&self.memory))))
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.check_open()?;
        Ok(Box::new(FlawedJournal::new(self.inner.journal().await?, self.flaw)))
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.check_open()?;
        let inner = self.inner.events(filter).await?;
        Ok(Box::new(FlawedEvents::new(inner, self.flaw, &self.memory)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    async fn close(&self) {
        match self.flaw {
            Flaw::CloseWakesNone => self.closed.store(true, Ordering::Relaxed),
            Flaw::IgnoresClose => {}
            Flaw::ClosesOthers => {
                let all = self.memory.connections.lock().unwrap().split_off(0);
                futures::future::join_all(all.iter().map(|connection| connection.close())).await;
            }
            _ => self.inner.close().await,
        }
    }
}

/// Returns the queue that the flaw uses in place of `queue`.
fn flawed_queue(flaw: Flaw, mut queue: Queue) -> Queue {
    queue.role = match (flaw, queue.role) {
        (Flaw::AlwaysSingleActive, QueueRole::Tasks) => QueueRole::Results,
        (Flaw::NeverSingleActive, QueueRole::Results) => QueueRole::Tasks,
        (Flaw::IgnoresRetryDelay, QueueRole::Retry(RetryDelay::Second)) => QueueRole::Requeued,
        (Flaw::ExtendsRetryDelay, QueueRole::Retry(RetryDelay::Second)) => {
            QueueRole::Retry(RetryDelay::TenSeconds)
        }
        (_, role) => role,
    };
    queue
}

impl fmt::Display for FlawedTransport {
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
    memory: Arc<FlawMemory>,
}

#[async_trait]
impl Publisher for FlawedPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let mut batch: Vec<_> = batch.into_iter().map(|outgoing| self.distort(outgoing)).collect();
        let copy = batch.clone();
        let named = |id: &str| copy.iter().position(|outgoing| outgoing.message.id == id);
        if let (Flaw::StoresRejected, Some(_)) = (self.flaw, named("again")) {
            batch.splice(..0, self.memory.rejected.lock().unwrap().take());
        }
        let lost = named("500").filter(|_| self.flaw == Flaw::LosesStored);
        lost.map(|place| batch.remove(place));
        let mut answers = self.inner.publish(batch).await;
        match self.flaw {
            Flaw::ReversesAnswers => answers.reverse(),
            Flaw::ConfirmsUnroutable => answers.fill(Published::Confirmed),
            Flaw::NeverRejects => replace(&mut answers, &Published::Nacked, &Published::Confirmed),
            Flaw::LosesStored => lost.into_iter().for_each(|at| answers.insert(at, Published::Confirmed)),
            Flaw::StoresRejected if answers.len() > copy.len() => drop(answers.remove(0)),
            Flaw::StoresRejected if answers.last() == Some(&Published::Nacked) => {
                *self.memory.rejected.lock().unwrap() = copy.last().cloned();
            }
            Flaw::SwapsAnswers => {
                std::mem::swap(&mut answers, &mut self.memory.last_answers.lock().unwrap());
                if answers.is_empty() {
                    answers = vec![Published::Confirmed; copy.len()];
                }
            }
            Flaw::PublishesTwice => drop(self.inner.publish(copy).await),
            _ => {}
        }
        answers
    }
}

impl FlawedPublisher {
    fn distort(&self, mut outgoing: Outgoing) -> Outgoing {
        let message = &mut outgoing.message;
        match (self.flaw, &mut outgoing.to) {
            (flaw, Address::Queue(queue)) => *queue = flawed_queue(flaw, queue.clone()),
            (Flaw::ReplaysEvents, Address::Events(_)) => {
                self.memory.events.lock().unwrap().push_back(message.clone());
            }
            (Flaw::MixesLanes, Address::Events(Topic::Job(lane, _) | Topic::Worker(lane, _))) => {
                *lane = self.memory.lane.get().unwrap().clone();
            }
            _ => {}
        }
        match self.flaw {
            Flaw::DropsHeaders => message.headers = Headers::default(),
            Flaw::TruncatesBodies => message.body.truncate(crate::memory::MAX_MESSAGE),
            _ => {}
        }
        outgoing
    }
}

fn replace(answers: &mut [Published], from: &Published, to: &Published) {
    answers.iter_mut().filter(|answer| *answer == from).for_each(|answer| *answer = to.clone());
}
