//! A reader of a queue, which takes deliveries one after the other; its acks only grant credit for
//! more.

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
    connection::{Generation, OwnedChannel},
    failure::{self, Operation},
};

/// Maximum number of unacked deliveries of a reader.
pub(crate) const READER_PREFETCH: u16 = 200;

pub(crate) struct StreamReader {
    queue: ShortString,
    channel: OwnedChannel,
    /// Number of deliveries since the last ack, and the tag of the last one.
    unacked: u16,
    last_tag: u64,
    /// Reason why the stream has ended.
    closed_reason: Option<String>,
    generation: Arc<Generation>,
}

impl StreamReader {
    pub(crate) async fn open(
        generation: Arc<Generation>,
        mut channel: OwnedChannel,
        queue: ShortString,
        arguments: FieldTable,
    ) -> Result<Self, TransportError> {
        let qos = channel.basic_qos(READER_PREFETCH, BasicQosOptions { global: false });
        generation.request(Operation::Unrestricted, "a prefetch", qos).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.clone(), "".into(), options, arguments);
        channel
            .set_consumer(generation.request(Operation::Read, &format!("reading {queue}"), consume).await?);
        Ok(Self { queue, channel, unacked: 0, last_tag: 0, closed_reason: None, generation })
    }

    /// Returns the number of the reader's generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.number
    }

    /// Returns the next delivery. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, TransportError> {
        consume_budget().await; // a long stream must not starve other tasks
        if let Some(reason) = &self.closed_reason {
            return Err(self.generation.end.disconnect_error(reason));
        }
        if let Some(here) = self.try_next() {
            return here;
        }
        // All is acked before a wait: the broker closes the channel of a delivery that is unacked
        // for half an hour.
        self.ack();
        let item = tokio::select! {
            biased;
            () = self.generation.end.wait() => return Err(self.generation.end.error()),
            item = self.channel.next_delivery() => item,
        };
        self.accept(item)
    }

    /// Returns the next delivery, if one is buffered.
    pub(crate) fn try_next(&mut self) -> Option<Result<Delivery, TransportError>> {
        let item = self.channel.next_delivery().now_or_never()?;
        Some(self.accept(item))
    }

    /// Waits until all that the broker has sent so far is buffered. Deliveries and replies on a
    /// channel keep their order, so any reply will do.
    pub(crate) async fn flush(&mut self) -> Result<(), TransportError> {
        let qos = self.channel.basic_qos(READER_PREFETCH, BasicQosOptions { global: false });
        self.generation.request(Operation::Unrestricted, "a prefetch", qos).await
    }

    fn accept(&mut self, item: Option<lapin::Result<Delivery>>) -> Result<Delivery, TransportError> {
        let reason = match item {
            Some(Ok(delivery)) => {
                self.unacked += 1;
                self.last_tag = delivery.delivery_tag;
                if self.unacked >= READER_PREFETCH / 2 {
                    self.ack();
                }
                return Ok(delivery);
            }
            Some(Err(error)) => failure::reason(&error),
            None => format!("the broker ended the reading of {}", self.queue),
        };
        let error = self.generation.end.disconnect_error(&reason);
        self.closed_reason = Some(reason);
        Err(error)
    }

    fn ack(&mut self) {
        if self.unacked == 0 {
            return;
        }
        self.unacked = 0;
        // The first poll passes it to lapin, and the write needs no wait. If it fails, the stream
        // returns the reason.
        let _ = self.channel.basic_ack(self.last_tag, BasicAckOptions { multiple: true }).now_or_never();
    }
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader")
            .field("queue", &self.queue)
            .field("closed_reason", &self.closed_reason)
            .finish_non_exhaustive()
    }
}
