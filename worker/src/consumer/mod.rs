//! The consumer of one of the lane's queues: takes deliveries, within a prefetch that follows the
//! length of batches, and pushes them to the slots.

pub(crate) mod prefetch;

pub(crate) use prefetch::{BATCHES_PER_SLOT, LOWEST_LEVEL};

use std::{sync::Arc, time::Duration};

use futures::future::select_all;
use gristmill_shared::{
    Consumer, Delivery, QueueRole, RunningIndex, TransportError, metrics::WORKER_REDELIVERIES,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    context::WorkerContext,
    delivery::{BatchDelivery, InFlightBatch},
    outbound::{OutboundQueue, PublishRequest},
    poison::counted_redeliveries,
    run_queue::{RunQueueReceiver, RunQueueSender},
};
use prefetch::{RESET_AFTER, STALLED_AFTER, START_LEVEL};

/// Deliveries taken from the transport at a time; the rest waits there, within the prefetch.
const RECV_MAX_DELIVERIES: usize = 64;
/// Retired consumers of a queue with unsettled deliveries. With more of them the prefetch stays as
/// it is.
const RETIRED_MAX_CONSUMERS: usize = 4;

/// Polling interval for retired consumers with unsettled deliveries. Polling is cheaper than a
/// notification on each settlement.
const RETIRED_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A consumer of one of the lane's queues.
#[derive(Debug)]
pub(crate) struct QueueConsumer {
    pub(crate) from: QueueRole,
    /// Deliveries to hold, by prefetch level.
    pub(crate) prefetch: [u16; BATCHES_PER_SLOT.len()],
    pub(crate) context: Arc<WorkerContext>,
    pub(crate) run_sender: RunQueueSender,
    /// The receiving half of `run_sender`: waiting deliveries are requeued when batches turn out to
    /// take long.
    pub(crate) run_receiver: RunQueueReceiver,
    pub(crate) outbound_queue: OutboundQueue,
    pub(crate) leaving: CancellationToken,
}

/// The transport's consumer of one prefetch level, and its deliveries that may be unsettled.
#[derive(Debug)]
pub(crate) struct LevelConsumer {
    /// The level that it belongs to.
    level: usize,
    consumer: Box<dyn Consumer>,
    unsettled: Vec<Arc<InFlightBatch>>,
}

impl QueueConsumer {
    /// Opens the consumers of the level at which every worker starts.
    pub(crate) async fn open(&self) -> Result<Vec<LevelConsumer>, TransportError> {
        let mut consumers = Vec::new();
        for level in LOWEST_LEVEL..=START_LEVEL {
            consumers.extend(self.open_level(level).await?);
        }
        Ok(consumers)
    }

    /// Opens the consumer of one level; returns `None` if the level adds no deliveries. A
    /// transport's consumer has a fixed prefetch, so each level has its own consumer for what it
    /// holds beyond the level below, and going up leaves the others undisturbed.
    async fn open_level(&self, level: usize) -> Result<Option<LevelConsumer>, TransportError> {
        let below = if level == LOWEST_LEVEL { 0 } else { self.prefetch[level - 1] };
        let more = self.prefetch[level].saturating_sub(below);
        if more == 0 {
            return Ok(None);
        }
        let consumer = self.context.transport.consume(&self.from.of(&self.context.lane), more).await?;
        Ok(Some(LevelConsumer { level, consumer, unsettled: Vec::new() }))
    }

    /// Runs until the worker leaves; then stops the consumers and pushes what they have received.
    ///
    /// Returns the consumers open, because the batches that slots still run are settled through
    /// them.
    pub(crate) async fn run(
        self,
        mut consumers: Vec<LevelConsumer>,
    ) -> Result<Vec<Box<dyn Consumer>>, TransportError> {
        let controller = &self.context.prefetch;
        // Consumers of higher levels, through which their deliveries are settled. They are dropped
        // last: the deliveries that they give up would otherwise reach the other consumers, which
        // are about to stop, and be redelivered once more for nothing.
        let mut retired: Vec<LevelConsumer> = Vec::new();
        let (mut level, mut since) = (START_LEVEL, 0);
        let mut pauses = self.context.releases.pauses();
        loop {
            // Dropped rather than closed, since a drop does not wait, and at once: deliveries that
            // the broker sent while the consumer stopped come again only when its channel has
            // closed.
            retired.retain_mut(|level_consumer| !level_consumer.is_settled());
            let may_change = self.prefetch[LOWEST_LEVEL] != self.prefetch[BATCHES_PER_SLOT.len() - 1]
                && retired.len() < RETIRED_MAX_CONSUMERS;
            let received = tokio::select! {
                received = recv_any(&mut consumers) => Some(received?),
                () = self.leaving.cancelled() => break,
                Ok(()) = pauses.changed() => {
                    let until = *pauses.borrow_and_update();
                    for mut level_consumer in consumers.drain(..) {
                        self.drain_consumer(&mut level_consumer, false).await?;
                        retired.push(level_consumer);
                    }
                    tokio::select! {
                        () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)) => {}
                        () = self.leaving.cancelled() => break,
                    }
                    consumers = self.open().await?;
                    (level, since) = (START_LEVEL, controller.batches_ended());
                    continue;
                }
                () = controller.wait_until_long(level != LOWEST_LEVEL), if may_change => None,
                () = tokio::time::sleep(RESET_AFTER), if may_change && level > START_LEVEL => None,
                () = tokio::time::sleep(RETIRED_POLL_INTERVAL), if !retired.is_empty() => None,
            };
            let mut full = false;
            if let Some((at, deliveries)) = received {
                let held = consumers.iter_mut().map(LevelConsumer::count_unsettled).sum::<usize>()
                    + deliveries.len();
                // A quarter, since the latest acks are still on their way to the broker. Enough
                // batches must have ended meanwhile for a significant mean.
                full = held >= usize::from(self.prefetch[level].div_ceil(4))
                    && controller.batches_ended() >= since + u64::from(self.prefetch[level])
                    && self.prefetch.get(level + 1).is_some_and(|more| controller.has_room_for(*more));
                self.enqueue(&mut consumers[at], deliveries, may_change && level != LOWEST_LEVEL).await;
            }
            let next = controller.next_level(level, full);
            if may_change && next != level && !self.leaving.is_cancelled() {
                let (from, to) = (self.prefetch[level], self.prefetch[next]);
                tracing::debug!(queue = ?self.from, from, to, "the prefetch follows the duration of batches");
                (level, since) = (next, controller.batches_ended());
                while let Some(mut above) = consumers.pop_if(|level_consumer| level_consumer.level > level) {
                    self.drain_consumer(&mut above, true).await?;
                    retired.push(above);
                }
                if to > from {
                    consumers.extend(self.open_level(level).await?);
                }
            }
        }
        for level_consumer in &mut consumers {
            self.drain_consumer(level_consumer, false).await?;
        }
        Ok(consumers.into_iter().chain(retired).map(|level_consumer| level_consumer.consumer).collect())
    }

    /// Stops a consumer and pushes what it has received.
    async fn drain_consumer(
        &self,
        level_consumer: &mut LevelConsumer,
        may_requeue: bool,
    ) -> Result<(), TransportError> {
        level_consumer.consumer.stop().await?;
        loop {
            let left = level_consumer.consumer.recv(RECV_MAX_DELIVERIES).await?;
            if left.is_empty() {
                return Ok(());
            }
            self.enqueue(level_consumer, left, may_requeue).await;
        }
    }

    /// Waits until slots have taken all of the deliveries. With `may_requeue`, requeues all waiting
    /// deliveries while batches take long, and also waits for those that are being requeued, since
    /// only this task holds them.
    async fn enqueue(
        &self,
        level_consumer: &mut LevelConsumer,
        deliveries: Vec<Delivery>,
        may_requeue: bool,
    ) {
        let enqueued = CancellationToken::new();
        let enqueueing = async {
            enqueue_deliveries(level_consumer, deliveries, self.from, &self.context, &self.run_sender).await;
            enqueued.cancel();
        };
        if !may_requeue {
            return enqueueing.await;
        }
        let long = async {
            tokio::select! {
                biased;
                () = enqueued.cancelled() => return,
                () = self.context.prefetch.wait_until_long(true) => {}
                () = self.run_sender.wait_stalled(STALLED_AFTER) => self.context.prefetch.record_stall(),
            }
            requeue_all(&self.context, &self.run_receiver, &self.outbound_queue, &enqueued).await;
        };
        tokio::join!(enqueueing, long);
    }
}

impl LevelConsumer {
    /// Returns the number of its unsettled deliveries.
    fn count_unsettled(&mut self) -> usize {
        self.unsettled.retain(|batch| !batch.is_settled());
        self.unsettled.len()
    }

    fn is_settled(&mut self) -> bool {
        self.count_unsettled() == 0
    }
}

/// Waits for deliveries of any consumer, and returns its index with them. Cancel safe.
async fn recv_any(consumers: &mut [LevelConsumer]) -> Result<(usize, Vec<Delivery>), TransportError> {
    let receiving =
        consumers.iter_mut().map(|level_consumer| level_consumer.consumer.recv(RECV_MAX_DELIVERIES));
    let (deliveries, at, _) = select_all(receiving).await;
    Ok((at, deliveries?))
}

/// Pushes the deliveries, and waits until the run queue is down to its low watermark.
async fn enqueue_deliveries(
    level_consumer: &mut LevelConsumer,
    deliveries: Vec<Delivery>,
    from: QueueRole,
    context: &WorkerContext,
    run_sender: &RunQueueSender,
) {
    // The list never exceeds the prefetch. After a lost connection it also has the unsettled
    // batches of the old one until they have run in vain: their old receipts do nothing, and they
    // come again.
    level_consumer.unsettled.retain(|batch| !batch.is_settled());
    // Decided now, since a delivery may wait here for long.
    let changed_at = context.connection_changed_at();
    let taken = deliveries.into_iter().map(|Delivery { message, receipt, deliveries_before: before }| {
        if before > 0 {
            tracing::debug!(id = message.id, queue = ?from, before, "delivered again");
            WORKER_REDELIVERIES.add([from.as_str()], 1);
        }
        let redeliveries = counted_redeliveries(before, changed_at);
        let in_flight = Arc::new(InFlightBatch::new(receipt, from));
        level_consumer.unsettled.push(Arc::clone(&in_flight));
        BatchDelivery { message, from, redeliveries, in_flight, running: RunningIndex::default() }
    });
    run_sender.push(taken.collect()).await;
}

/// Requeues all deliveries that wait for a slot, at no cost, until the run queue is closed or
/// `enough` is cancelled.
///
/// Not cancel safe: a delivery that was taken from the queue must be published.
pub(crate) async fn requeue_all(
    context: &WorkerContext,
    run_receiver: &RunQueueReceiver,
    outbound_queue: &OutboundQueue,
    enough: &CancellationToken,
) {
    loop {
        let next = tokio::select! {
            biased;
            () = enough.cancelled() => return,
            next = run_receiver.next_async() => next,
        };
        let Some(BatchDelivery { message, from, in_flight, .. }) = next else { return };
        let messages = vec![context.requeue(message, from)];
        outbound_queue.send_async(PublishRequest::new(messages.into(), &in_flight)).await;
        in_flight.complete_part();
    }
}
