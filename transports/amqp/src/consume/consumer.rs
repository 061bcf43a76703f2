//! One consumer of one queue, on a channel of its own.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, future::join_all};
use gristmill_shared::{Consumer, Delivery, Queue, QueueRole, Receipt, Settler, TransportError};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::task::coop::consume_budget;
use tokio_util::sync::CancellationToken;

use crate::{
    connection::channel::{self, OwnChannel},
    failure::{self, Wish},
    connection::generation::Generation,
    connection::handle::Link,
    publish::properties,
    consume::resubscribe::Renewed,
    consume::unsettled::{Unsettled, Word},
};

pub(crate) struct AmqpConsumer {
    queue: Queue,
    prefetch: u16,
    state: State,
    subscription: Renewed<Subscription>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Taking,
    /// No further deliveries were asked for; some may still be here.
    Stopping,
    /// And all of them have been returned, or went with their connection.
    Stopped,
}

/// What a consumer is to the broker: it lives as long as its channel.
struct Subscription {
    queue: Queue,
    tag: ShortString,
    channel: OwnChannel,
    unsettled: Arc<Unsettled>,
    /// How its stream ended.
    ended: Option<Ended>,
    generation: Arc<Generation>,
}

#[derive(Clone, Debug)]
enum Ended {
    /// Without an error.
    Quietly,
    For(String),
}

impl AmqpConsumer {
    /// A prefetch of 0, which means "no bound" to the broker, counts as 1.
    pub(crate) async fn start(link: Arc<Link>, queue: &Queue, prefetch: u16) -> Result<Self, TransportError> {
        let (queue, prefetch) = (queue.clone(), prefetch.max(1));
        let subscribe = |generation| Subscription::begin(generation, queue.clone(), prefetch);
        let subscription = Renewed::make(link, format!("consuming {queue}"), subscribe).await?;
        Ok(Self { queue, prefetch, state: State::Taking, subscription })
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    /// A `max` of 0 counts as 1, since an empty vector has a meaning of its own.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        consume_budget().await; // a queue that never runs dry must not keep others off the thread
        while self.state != State::Stopped {
            let (queue, prefetch) = (&self.queue, self.prefetch);
            let subscription = self.subscription.get(|| {
                let queue = queue.clone();
                move |generation| Subscription::begin(generation, queue.clone(), prefetch)
            });
            let subscription = subscription.await?;
            let deliveries = subscription.recv(max.max(1)).await;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            if self.state == State::Stopping {
                self.state = State::Stopped; // what was returned can still be settled
                self.subscription.line().end.check()?;
            } else {
                let (generation, error) = (subscription.generation.number, subscription.error());
                self.subscription.lost(generation, &error);
            }
        }
        Ok(Vec::new())
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.state == State::Taking {
            self.state = match self.subscription.here() {
                Some(subscription) => match subscription.cancel().await {
                    Ok(()) => State::Stopping,
                    Err(_) => State::Stopped, // then nothing comes from it either
                },
                None => State::Stopped,
            };
        }
        self.subscription.line().end.check()
    }

    async fn close(mut self: Box<Self>) {
        if let Some(subscription) = self.subscription.here() {
            subscription.channel.close().await; // its waits are bounded
        }
    }
}

impl Subscription {
    async fn begin(generation: Arc<Generation>, queue: Queue, prefetch: u16) -> Result<Self, TransportError> {
        // A new channel for each consumer: 3.10.8 loses track of one that is registered again on the same.
        let mut channel = generation.channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        generation.ask(Wish::Free, "a prefetch", qos).await?;
        let options = BasicConsumeOptions::default();
        let consume =
            channel.basic_consume(queue.to_string().into(), "".into(), options, FieldTable::default());
        let consumer = generation.ask(Wish::Read, &format!("consuming {queue}"), consume).await?;
        let tag = consumer.tag();
        channel.set_consumer(consumer);
        let unsettled = Arc::new(Unsettled::new(generation.number, prefetch));
        channel.spawn(|channel, leave| acknowledge(channel, leave, Arc::clone(&unsettled)));
        Ok(Self { queue, tag, channel, unsettled, ended: None, generation })
    }

    /// Waits for deliveries; none are the end, and `error` says of what kind. Cancel safe.
    async fn recv(&mut self, max: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < max && self.ended.is_none() {
            let item = if deliveries.is_empty() {
                tokio::select! {
                    biased;
                    () = self.generation.end.wait() => break,
                    item = self.channel.next() => item,
                }
            } else {
                // No waiting from here on, so that nothing is lost if the caller stops to wait.
                let Some(item) = self.channel.next().now_or_never() else { break };
                item
            };
            match item {
                Some(Ok(delivery)) => deliveries.push(self.deliver(delivery)),
                Some(Err(error)) => self.ended = Some(Ended::For(failure::reason(&error))),
                None => self.ended = Some(Ended::Quietly),
            }
        }
        deliveries
    }

    fn deliver(&self, delivery: lapin::message::Delivery) -> Delivery {
        let from_dead_queue = self.queue.role == QueueRole::Dead;
        let message = properties::incoming(&delivery.properties, Bytes::from(delivery.data), from_dead_queue);
        let deliveries_before = properties::deliveries_before(&delivery.properties, delivery.redelivered);
        let token = self.unsettled.add(delivery.delivery_tag);
        let settler = Arc::clone(&self.unsettled) as Arc<dyn Settler>;
        Delivery { message, deliveries_before, receipt: Receipt::new(token, settler) }
    }

    fn error(&self) -> TransportError {
        let end = &self.generation.end;
        match &self.ended {
            Some(Ended::For(reason)) => end.disconnected(reason),
            Some(Ended::Quietly) => end.disconnected("the broker ended it"),
            None => end.error(),
        }
    }

    async fn cancel(&self) -> Result<(), TransportError> {
        let cancel = self.channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        self.generation.ask(Wish::Free, &format!("stopping the consumer of {}", self.queue), cancel).await
    }
}

impl fmt::Debug for AmqpConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, state, .. } = self;
        f.debug_struct("AmqpConsumer").field("queue", queue).field("state", state).finish_non_exhaustive()
    }
}

/// The task that alone writes to a consumer's channel. At its end it says what is left to say and closes the channel,
/// upon which the broker gives to others what is unsettled.
async fn acknowledge(channel: Channel, leave: CancellationToken, unsettled: Arc<Unsettled>) {
    while leave.run_until_cancelled(unsettled.due()).await.is_some() {
        say(&channel, &unsettled).await;
    }
    say(&channel, &unsettled).await;
    channel::close(&channel).await;
}

async fn say(channel: &Channel, unsettled: &Unsettled) {
    // Polled together, so that they share a write; in turn, so that they keep their order. If the channel is gone, so
    // are the deliveries, and the consumer's stream says why.
    let _ = join_all(unsettled.take().into_iter().map(|word| async move {
        match word {
            Word::Ack(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await,
            Word::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
            Word::Requeue(tag) => {
                channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
            }
        }
    }))
    .await;
}
