//! The publisher of outcomes. A batch is acked only after everything that follows from it is
//! stored.
//!
//! Further outcomes gather while an answer of the broker is pending, or while all slots are busy
//! with batches that take a while, and their outputs are merged. So a lone batch's outcomes are
//! published at once, and under load fewer messages are needed.

use std::{mem, sync::Arc};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, PublishError, Published, Publisher, Queue, QueueRole,
    fail_point::{FailPoint, reached},
    metrics::{WORKER_HANDOFFS_UNCONFIRMED, WORKER_STORED},
    publish_until_answered,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{ack_guard::AckGuard, merge::MergedOutputs, oversize::split_or_fail};
use crate::{context::WorkerContext, delivery::InFlightBatch, run_queue::RunQueueReceiver};

/// Requests that may be queued. All queued ones are published together.
const QUEUE_MAX_REQUESTS: usize = 512;
/// Bytes at which a publish batch is complete: it is encoded in one go.
const PUBLISH_BATCH_MAX_BYTES: usize = 4 << 20;
/// Unconfirmed messages and outputs of batches above which no further publish batch is sent. When
/// the queue is full as well, slots wait, and the worker takes no more from the broker than the
/// prefetch allows.
const UNCONFIRMED_MAX_PARTS: usize = 512;
/// Bytes that may be queued or unconfirmed, together.
const OUTBOUND_MAX_BYTES: u32 = 32 << 20;
/// Publish batches that may be in flight: the next one is sent while the answer to one is pending.
const IN_FLIGHT_MAX_BATCHES: usize = 2;

/// The outcomes of some tasks of a batch.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    /// The outputs, for the sink.
    pub(crate) outputs: Option<MergedOutputs>,
    /// All others, each a message of its own.
    pub(crate) messages: Vec<Outgoing>,
}

impl From<Vec<Outgoing>> for Outbound {
    fn from(messages: Vec<Outgoing>) -> Self {
        Self { outputs: None, messages }
    }
}

/// Outcomes of a batch to publish, each a pending part of the batch until it is stored.
#[derive(Debug)]
pub(crate) struct PublishRequest {
    outbound: Outbound,
    batch: Arc<InFlightBatch>,
}

impl PublishRequest {
    /// Adds the pending parts to the batch.
    pub(crate) fn new(outbound: Outbound, batch: &Arc<InFlightBatch>) -> Self {
        let parts = outbound.messages.len() + usize::from(outbound.outputs.is_some());
        (0..parts).for_each(|_| batch.add_part());
        Self { outbound, batch: Arc::clone(batch) }
    }

    /// True if there are no outcomes.
    fn is_empty(&self) -> bool {
        self.outbound.outputs.is_none() && self.outbound.messages.is_empty()
    }
}

/// The sending half of the queue of publish requests.
#[derive(Debug, Clone)]
pub(crate) struct OutboundQueue {
    queue: flume::Sender<(PublishRequest, OwnedSemaphorePermit)>,
    free_bytes: Arc<Semaphore>,
}

/// The receiving half. Dropping it wakes all senders that wait for free bytes.
#[derive(Debug)]
pub(crate) struct OutboundReceiver {
    queue: flume::Receiver<(PublishRequest, OwnedSemaphorePermit)>,
    free_bytes: Arc<Semaphore>,
}

impl Drop for OutboundReceiver {
    fn drop(&mut self) {
        self.free_bytes.close();
    }
}

/// Makes both halves of the queue.
pub(crate) fn outbound_channel() -> (OutboundQueue, OutboundReceiver) {
    let (sender, receiver) = flume::bounded(QUEUE_MAX_REQUESTS);
    let free_bytes = Arc::new(Semaphore::new(OUTBOUND_MAX_BYTES as usize));
    (
        OutboundQueue { queue: sender, free_bytes: Arc::clone(&free_bytes) },
        OutboundReceiver { queue: receiver, free_bytes },
    )
}

impl OutboundQueue {
    /// Sends a request; blocks while too many bytes are queued or unconfirmed. The request is lost
    /// if the worker has ended with an error; its batch then stays unsettled.
    pub(crate) fn send(&self, request: PublishRequest) {
        if request.is_empty() {
            return;
        }
        let permit = match Arc::clone(&self.free_bytes).try_acquire_many_owned(request_bytes(&request)) {
            Ok(permit) => Ok(permit),
            Err(_) => block_on(Arc::clone(&self.free_bytes).acquire_many_owned(request_bytes(&request))),
        };
        if let Ok(permit) = permit {
            let _ = self.queue.send((request, permit));
        }
    }

    /// Sends a request as [`OutboundQueue::send`] does. Not cancel safe.
    pub(crate) async fn send_async(&self, request: PublishRequest) {
        if request.is_empty() {
            return;
        }
        if let Ok(permit) = Arc::clone(&self.free_bytes).acquire_many_owned(request_bytes(&request)).await {
            let _ = self.queue.send_async((request, permit)).await;
        }
    }
}

/// Returns the bytes that a request takes, at most [`OUTBOUND_MAX_BYTES`].
fn request_bytes(PublishRequest { outbound: Outbound { outputs, messages }, .. }: &PublishRequest) -> u32 {
    let messages = messages.iter().map(|outgoing| outgoing.message.body.len()).sum::<usize>();
    let all = outputs.as_ref().map_or(0, MergedOutputs::bytes) + messages;
    u32::try_from(all).unwrap_or(OUTBOUND_MAX_BYTES).min(OUTBOUND_MAX_BYTES)
}

/// A message, with the guards to complete when it is stored.
#[derive(Debug)]
struct GuardedMessage {
    outgoing: Outgoing,
    guards: Vec<AckGuard>,
}

/// Messages that are published together.
#[derive(Debug, Default)]
struct PublishBatch {
    /// Merged outputs, one entry a source unless they exceed one message.
    outputs: Vec<(MergedOutputs, Vec<AckGuard>)>,
    messages: Vec<GuardedMessage>,
    requests: usize,
    bytes: usize,
}

impl PublishBatch {
    fn add(&mut self, (PublishRequest { outbound, batch }, permit): (PublishRequest, OwnedSemaphorePermit)) {
        reached(FailPoint::WorkerRan);
        self.requests += 1;
        self.bytes += permit.num_permits();
        let permit = Arc::new(permit);
        let guard = || AckGuard::new(Arc::clone(&batch), Arc::clone(&permit));
        if let Some(outputs) = outbound.outputs {
            match self.outputs.iter_mut().find(|(others, _)| others.can_merge(&outputs)) {
                Some((others, guards)) => {
                    others.merge(outputs);
                    guards.push(guard());
                }
                None => self.outputs.push((outputs, vec![guard()])),
            }
        }
        self.messages.extend(
            outbound.messages.into_iter().map(|outgoing| GuardedMessage { outgoing, guards: vec![guard()] }),
        );
    }

    fn is_complete(&self) -> bool {
        self.requests >= QUEUE_MAX_REQUESTS || self.bytes >= PUBLISH_BATCH_MAX_BYTES
    }

    fn into_messages(self, context: &WorkerContext) -> Vec<GuardedMessage> {
        let outputs = self.outputs.into_iter();
        let outputs = outputs
            .map(|(outputs, guards)| GuardedMessage { outgoing: outputs.into_message(context), guards });
        outputs.chain(self.messages).collect()
    }
}

/// Publishes requests until one cannot be stored, or until `all_emitted` is cancelled and all
/// earlier requests are stored. An idle slot, as `run_receiver` reports it, ends the delay of
/// outcomes.
pub(crate) async fn publish_outbound(
    context: &WorkerContext,
    outbound_receiver: OutboundReceiver,
    publisher: &dyn Publisher,
    run_receiver: &RunQueueReceiver,
    all_emitted: &CancellationToken,
) -> Result<(), PublishError> {
    let queue = &outbound_receiver.queue;
    let mut in_progress = FuturesUnordered::new();
    let mut retrying = FuturesUnordered::new();
    let mut in_flight = 0;
    let (mut pending, mut due) = (PublishBatch::default(), Instant::now());
    loop {
        WORKER_HANDOFFS_UNCONFIRMED.set([], in_flight as f64);
        let has_room = in_progress.len() < IN_FLIGHT_MAX_BATCHES && in_flight < UNCONFIRMED_MAX_PARTS;
        tokio::select! {
            biased;
            Some(PublishBatchResult { unstored, completed }) = in_progress.next() => {
                in_flight -= completed;
                retrying.extend(unstored.into_iter().map(|message| publish_one(message, context, publisher)));
            }
            Some(completed) = retrying.next() => in_flight -= completed?,
            Ok(next) = queue.recv_async(), if has_room && !pending.is_complete() => {
                if pending.requests == 0 {
                    due = Instant::now() + context.prefetch.coalesce_delay();
                }
                pending.add(next);
                while !pending.is_complete()
                    && let Ok(next) = queue.try_recv()
                {
                    pending.add(next);
                }
                if pending.is_complete() {
                    due = Instant::now();
                }
            }
            () = wait_any(sleep_until(due), run_receiver.wait_idle(), all_emitted.cancelled()), if pending.requests > 0 => {
                let messages = mem::take(&mut pending).into_messages(context);
                in_flight += messages.iter().map(|message| message.guards.len()).sum::<usize>();
                in_progress.push(publish_batch(messages, publisher));
            }
            () = all_emitted.cancelled(), if in_flight == 0 && pending.requests == 0 => return Ok(()),
        }
    }
}

/// Waits for any of the three.
async fn wait_any(one: impl Future, another: impl Future, third: impl Future) {
    tokio::select! {
        biased;
        _ = one => {}
        _ = another => {}
        _ = third => {}
    }
}

/// Returns the metric label of a message's destination.
fn queue_label(to: &Address) -> &'static str {
    match to {
        Address::Queue(queue) => queue.role.as_str(),
        Address::Journal | Address::Events(_) => "none", // no outcome of a batch goes there
    }
}

/// The answer of the broker to a publish batch.
struct PublishBatchResult {
    /// The messages that were not stored.
    unstored: Vec<GuardedMessage>,
    /// The number of guards that were completed for the others.
    completed: usize,
}

/// Publishes all messages at once, and completes the guards of those that are stored. The others
/// are retried one by one, so that a queue which refuses messages delays no other.
async fn publish_batch(messages: Vec<GuardedMessage>, publisher: &dyn Publisher) -> PublishBatchResult {
    let batch = messages.iter().map(|message| message.outgoing.clone()).collect();
    let mut answers = publisher.publish(batch).await.into_iter();
    let (stored, unstored): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|_| answers.next() == Some(Published::Confirmed));
    let mut completed = 0;
    for GuardedMessage { outgoing, guards } in stored {
        WORKER_STORED.add([queue_label(&outgoing.to)], 1);
        completed += guards.len();
        guards.into_iter().for_each(AckGuard::complete);
    }
    PublishBatchResult { unstored, completed }
}

/// Publishes a message, or its replacements, until all are stored. Completes its guards and returns
/// their number.
async fn publish_one(
    GuardedMessage { outgoing, guards }: GuardedMessage,
    context: &WorkerContext,
    publisher: &dyn Publisher,
) -> Result<usize, PublishError> {
    let mut unstored = vec![outgoing];
    while !unstored.is_empty() {
        let mut queues: Vec<_> = unstored.iter().map(|outgoing| queue_label(&outgoing.to)).collect();
        let refused = publish_until_answered(publisher, mem::take(&mut unstored)).await?;
        for (Outgoing { to, .. }, _) in &refused {
            queues.iter().position(|name| *name == queue_label(to)).map(|place| queues.swap_remove(place));
        }
        queues.into_iter().for_each(|queue| WORKER_STORED.add([queue], 1));
        for (Outgoing { to, message }, why) in refused {
            if let Some(parts) = split_or_fail(&message, &why) {
                tracing::warn!(%to, bytes = message.body.len(), why, "the broker refused results; sending them in smaller messages");
                unstored.extend(parts.into_iter().map(|message| Outgoing { to: to.clone(), message }));
                continue;
            }
            match to {
                // A foreign message in our queue, larger than any that we send. It must not end one
                // worker after another.
                Address::Queue(Queue { role, .. })
                    if !matches!(role, QueueRole::Results | QueueRole::Dead) =>
                {
                    unstored.push(context.dead_letter(message, role, &why));
                }
                // The batch stays unsettled: no batch is acked without an outcome.
                to => return Err(PublishError::Invalid { to, why }),
            }
        }
    }
    let completed = guards.len();
    guards.into_iter().for_each(AckGuard::complete);
    Ok(completed)
}

#[cfg(test)]
mod tests;
