//! A consumer of one queue, on a channel of its own.

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

use super::{
    resubscribe::AutoRecover,
    unsettled::{AckCommand, UnsettledDeliveries},
};
use crate::{
    connection::{ConnectionHandle, Generation, OwnedChannel, close_channel},
    failure::{self, Operation},
    publish::properties,
};

pub(crate) struct AmqpConsumer {
    queue: Queue,
    prefetch: u16,
    phase: ConsumerPhase,
    subscription: AutoRecover<Subscription>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ConsumerPhase {
    Consuming,
    /// The subscription is cancelled; some deliveries may still be buffered.
    Stopping,
    /// All deliveries have been returned, or were lost with their connection.
    Stopped,
}

/// A consumer on the broker, which lives as long as its channel.
struct Subscription {
    queue: Queue,
    tag: ShortString,
    channel: OwnedChannel,
    unsettled: Arc<UnsettledDeliveries>,
    /// The end of the stream, once it has come.
    end: Option<StreamEnd>,
    generation: Arc<Generation>,
}

#[derive(Clone, Debug)]
enum StreamEnd {
    /// The broker ended it without an error.
    Clean,
    Error(String),
}

impl AmqpConsumer {
    /// Subscribes. A prefetch of 0, which means "no limit" to the broker, counts as 1.
    pub(crate) async fn start(
        handle: Arc<ConnectionHandle>,
        queue: &Queue,
        prefetch: u16,
    ) -> Result<Self, TransportError> {
        let (queue, prefetch) = (queue.clone(), prefetch.max(1));
        let subscribe = |generation| Subscription::open(generation, queue.clone(), prefetch);
        let subscription = AutoRecover::open(handle, format!("consuming {queue}"), subscribe).await?;
        Ok(Self { queue, prefetch, phase: ConsumerPhase::Consuming, subscription })
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    /// A `max` of 0 counts as 1, since an empty vector means the end.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        consume_budget().await; // a queue that is never empty must not starve other tasks
        while self.phase != ConsumerPhase::Stopped {
            let (queue, prefetch) = (&self.queue, self.prefetch);
            let subscription = self.subscription.get(|| {
                let queue = queue.clone();
                move |generation| Subscription::open(generation, queue.clone(), prefetch)
            });
            let subscription = subscription.await?;
            let deliveries = subscription.recv(max.max(1)).await;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            if self.phase == ConsumerPhase::Stopping {
                self.phase = ConsumerPhase::Stopped; // what was returned can still be settled
                self.subscription.connection().end.check()?;
            } else {
                let (generation, error) = (subscription.generation.number, subscription.error());
                self.subscription.mark_lost(generation, &error);
            }
        }
        Ok(Vec::new())
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.phase == ConsumerPhase::Consuming {
            self.phase = match self.subscription.active() {
                Some(subscription) => match subscription.cancel().await {
                    Ok(()) => ConsumerPhase::Stopping,
                    Err(_) => ConsumerPhase::Stopped, // then it delivers nothing either
                },
                None => ConsumerPhase::Stopped,
            };
        }
        self.subscription.connection().end.check()
    }

    async fn close(mut self: Box<Self>) {
        if let Some(subscription) = self.subscription.active() {
            subscription.channel.close().await; // its waits are bounded
        }
    }
}

impl Subscription {
    async fn open(generation: Arc<Generation>, queue: Queue, prefetch: u16) -> Result<Self, TransportError> {
        // Each consumer gets a new channel: 3.10.8 loses track of one that is registered again on
        // the same.
        let mut channel = generation.open_channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        generation.request(Operation::Unrestricted, "a prefetch", qos).await?;
        let options = BasicConsumeOptions::default();
        let consume =
            channel.basic_consume(queue.to_string().into(), "".into(), options, FieldTable::default());
        let consumer = generation.request(Operation::Read, &format!("consuming {queue}"), consume).await?;
        let tag = consumer.tag();
        channel.set_consumer(consumer);
        let unsettled = Arc::new(UnsettledDeliveries::new(generation.number, prefetch));
        channel.spawn(|channel, shutdown| write_acks(channel, shutdown, Arc::clone(&unsettled)));
        Ok(Self { queue, tag, channel, unsettled, end: None, generation })
    }

    /// Waits for deliveries. An empty vector is the end, and `error` returns the reason. Cancel
    /// safe.
    async fn recv(&mut self, max: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < max && self.end.is_none() {
            let item = if deliveries.is_empty() {
                tokio::select! {
                    biased;
                    () = self.generation.end.wait() => break,
                    item = self.channel.next_delivery() => item,
                }
            } else {
                // The rest does not wait, so that nothing is lost if the caller cancels.
                let Some(item) = self.channel.next_delivery().now_or_never() else { break };
                item
            };
            match item {
                Some(Ok(delivery)) => deliveries.push(self.deliver(delivery)),
                Some(Err(error)) => self.end = Some(StreamEnd::Error(failure::reason(&error))),
                None => self.end = Some(StreamEnd::Clean),
            }
        }
        deliveries
    }

    fn deliver(&self, delivery: lapin::message::Delivery) -> Delivery {
        let from_dead_queue = self.queue.role == QueueRole::Dead;
        let message = properties::decode(&delivery.properties, Bytes::from(delivery.data), from_dead_queue);
        let deliveries_before = properties::deliveries_before(&delivery.properties, delivery.redelivered);
        let token = self.unsettled.add(delivery.delivery_tag);
        let settler = Arc::clone(&self.unsettled) as Arc<dyn Settler>;
        Delivery { message, deliveries_before, receipt: Receipt::new(token, settler) }
    }

    fn error(&self) -> TransportError {
        let end = &self.generation.end;
        match &self.end {
            Some(StreamEnd::Error(reason)) => end.disconnect_error(reason),
            Some(StreamEnd::Clean) => end.disconnect_error("the broker ended it"),
            None => end.error(),
        }
    }

    async fn cancel(&self) -> Result<(), TransportError> {
        let cancel = self.channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        self.generation
            .request(Operation::Unrestricted, &format!("stopping the consumer of {}", self.queue), cancel)
            .await
    }
}

impl fmt::Debug for AmqpConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, phase, .. } = self;
        f.debug_struct("AmqpConsumer").field("queue", queue).field("phase", phase).finish_non_exhaustive()
    }
}

/// Writes all acks of a consumer's channel, as its only task. At its end it sends the pending acks
/// and closes the channel; the broker then requeues unsettled deliveries.
async fn write_acks(channel: Channel, shutdown: CancellationToken, unsettled: Arc<UnsettledDeliveries>) {
    while shutdown.run_until_cancelled(unsettled.wait_due()).await.is_some() {
        flush_acks(&channel, &unsettled).await;
    }
    flush_acks(&channel, &unsettled).await;
    close_channel(&channel).await;
}

async fn flush_acks(channel: &Channel, unsettled: &UnsettledDeliveries) {
    // Polled together, to share a write; created in order, to keep the order. If the channel is
    // gone, so are the deliveries, and the consumer's stream returns the reason.
    let _ = join_all(unsettled.take_commands().into_iter().map(|command| async move {
        match command {
            AckCommand::Ack(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await,
            AckCommand::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
            AckCommand::Requeue(tag) => {
                channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
            }
        }
    }))
    .await;
}
