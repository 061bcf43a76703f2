//! A queue that is read, not worked: deliveries are taken back to back, and acks are but the credit for more.

use std::{fmt, sync::Arc};

use futures::FutureExt;
use gristmill_shared::TransportError;
use lapin::{
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::task::coop::consume_budget;

use crate::{
    connection::channel::OwnChannel,
    failure::{self, Wish},
    connection::generation::Generation,
};

/// How many deliveries may be under way to a reader.
pub(crate) const FEED_PREFETCH: u16 = 200;

pub(crate) struct Feed {
    queue: ShortString,
    channel: OwnChannel,
    /// How many were taken since the last ack, and the last of them.
    taken: u16,
    last: u64,
    /// Why there is no more.
    gone: Option<String>,
    generation: Arc<Generation>,
}

impl Feed {
    pub(crate) async fn open(
        generation: Arc<Generation>,
        mut channel: OwnChannel,
        queue: ShortString,
        arguments: FieldTable,
    ) -> Result<Self, TransportError> {
        let qos = channel.basic_qos(FEED_PREFETCH, BasicQosOptions { global: false });
        generation.ask(Wish::Free, "a prefetch", qos).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.clone(), "".into(), options, arguments);
        channel.set_consumer(generation.ask(Wish::Read, &format!("reading {queue}"), consume).await?);
        Ok(Self { queue, channel, taken: 0, last: 0, gone: None, generation })
    }

    /// The number of the generation that it lives in.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.number
    }

    /// The next delivery. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, TransportError> {
        consume_budget().await; // a long feed must not keep others off the thread
        if let Some(reason) = &self.gone {
            return Err(self.generation.end.disconnected(reason));
        }
        if let Some(here) = self.next_here() {
            return here;
        }
        // Whoever waits holds nothing: the broker takes back what is held for half an hour, and the channel with it.
        self.ack();
        let item = tokio::select! {
            biased;
            () = self.generation.end.wait() => return Err(self.generation.end.error()),
            item = self.channel.next() => item,
        };
        self.take(item)
    }

    /// The next delivery, if it is here already.
    pub(crate) fn next_here(&mut self) -> Option<Result<Delivery, TransportError>> {
        let item = self.channel.next().now_or_never()?;
        Some(self.take(item))
    }

    /// Waits until everything that the broker could send by now is here. What it sends on a channel and what it
    /// answers there stay in order, so any answer will do.
    pub(crate) async fn flush(&mut self) -> Result<(), TransportError> {
        let qos = self.channel.basic_qos(FEED_PREFETCH, BasicQosOptions { global: false });
        self.generation.ask(Wish::Free, "a prefetch", qos).await
    }

    fn take(&mut self, item: Option<lapin::Result<Delivery>>) -> Result<Delivery, TransportError> {
        let reason = match item {
            Some(Ok(delivery)) => {
                self.taken += 1;
                self.last = delivery.delivery_tag;
                if self.taken >= FEED_PREFETCH / 2 {
                    self.ack();
                }
                return Ok(delivery);
            }
            Some(Err(error)) => failure::reason(&error),
            None => format!("the broker ended the reading of {}", self.queue),
        };
        let error = self.generation.end.disconnected(&reason);
        self.gone = Some(reason);
        Err(error)
    }

    fn ack(&mut self) {
        if self.taken == 0 {
            return;
        }
        self.taken = 0;
        // The first poll hands it over; nobody needs to wait for it to be written. If it fails, the stream says why.
        let _ = self.channel.basic_ack(self.last, BasicAckOptions { multiple: true }).now_or_never();
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("queue", &self.queue).field("gone", &self.gone).finish_non_exhaustive()
    }
}
