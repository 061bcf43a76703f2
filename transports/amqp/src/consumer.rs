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
    channel::{self, OwnChannel},
    failure,
    generation::Generation,
    properties,
    unsettled::{Unsettled, Word},
};

pub(crate) struct AmqpConsumer {
    queue: Queue,
    tag: ShortString,
    channel: OwnChannel,
    unsettled: Arc<Unsettled>,
    state: State,
    generation: Arc<Generation>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Taking,
    /// No further deliveries were asked for; some may still be here.
    Stopping,
    /// And all of them have been returned.
    Stopped,
    /// For this reason.
    Gone(String),
}

impl AmqpConsumer {
    /// A prefetch of 0, which means "no bound" to the broker, counts as 1.
    pub(crate) async fn start(
        generation: Arc<Generation>,
        queue: &Queue,
        prefetch: u16,
    ) -> Result<Self, TransportError> {
        let prefetch = prefetch.max(1);
        // A new channel for each consumer: 3.10.8 loses track of one that is registered again on the same.
        let mut channel = generation.channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        generation.ask("a prefetch", qos).await?;
        let options = BasicConsumeOptions::default();
        let consume =
            channel.basic_consume(queue.to_string().into(), "".into(), options, FieldTable::default());
        let consumer = generation.ask(&format!("consuming {queue}"), consume).await?;
        let tag = consumer.tag();
        channel.set_consumer(consumer);
        let unsettled = Arc::new(Unsettled::new(generation.number, prefetch));
        channel.spawn(|channel, leave| acknowledge(channel, leave, Arc::clone(&unsettled)));
        Ok(Self { queue: queue.clone(), tag, channel, unsettled, state: State::Taking, generation })
    }

    /// Takes what the stream gave. Nothing if that was its end, or an error, which `state` then knows.
    fn deliver(&mut self, item: Option<lapin::Result<lapin::message::Delivery>>) -> Option<Delivery> {
        let delivery = match item {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => {
                self.state = State::Gone(failure::reason(&error));
                return None;
            }
            None => {
                self.state = match self.state {
                    State::Stopping => State::Stopped,
                    _ => State::Gone(format!("the broker ended the consumer of {}", self.queue)),
                };
                return None;
            }
        };
        let from_dead_queue = self.queue.role == QueueRole::Dead;
        let message = properties::incoming(&delivery.properties, Bytes::from(delivery.data), from_dead_queue);
        let token = self.unsettled.add(delivery.delivery_tag);
        let settler = Arc::clone(&self.unsettled) as Arc<dyn Settler>;
        let deliveries_before = properties::deliveries_before(&delivery.properties, delivery.redelivered);
        Some(Delivery { message, deliveries_before, receipt: Receipt::new(token, settler) })
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    /// A `max` of 0 counts as 1, since an empty vector has a meaning of its own.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        consume_budget().await; // a queue that never runs dry must not keep others off the thread
        let mut deliveries = Vec::new();
        while deliveries.len() < max.max(1) {
            match &self.state {
                State::Taking | State::Stopping => {}
                _ if !deliveries.is_empty() => break,
                State::Stopped => break,
                State::Gone(reason) => return Err(self.generation.end.disconnected(reason)),
            }
            let item = if deliveries.is_empty() {
                tokio::select! {
                    biased;
                    () = self.generation.end.wait() => return Err(self.generation.end.error()),
                    item = self.channel.next() => item,
                }
            } else {
                // No waiting from here on, so that nothing is lost if the caller stops to wait.
                let Some(item) = self.channel.next().now_or_never() else { break };
                item
            };
            deliveries.extend(self.deliver(item));
        }
        Ok(deliveries)
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.state == State::Taking {
            let cancel = self.channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
            self.generation.ask(&format!("stopping the consumer of {}", self.queue), cancel).await?;
            self.state = State::Stopping;
        }
        match &self.state {
            State::Gone(reason) => Err(self.generation.end.disconnected(reason)),
            _ => Ok(()),
        }
    }

    async fn close(mut self: Box<Self>) {
        self.channel.close().await; // its waits are bounded
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
