//! The publisher: requests from all tasks, and a few channels that each send one batch after the
//! other.
//!
//! Facts have a channel of their own, so that a journal that does not answer delays nothing else.

use std::{mem, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::join;
use gristmill_shared::{Address, Outgoing, Published, Publisher};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::sleep,
};

use super::{
    confirm_batch::{self, BatchConfirms, CONFIRM_TIMEOUT, CONFIRM_TIMEOUT_MAX},
    frame::PublishFrame,
};
use crate::{
    MAX_MESSAGE,
    connection::{ConnectionHandle, CurrentConnection, OwnedChannel, ReconnectBackoff},
};

/// Number of channels that publish all but facts. While one waits for its confirms, the next one
/// sends.
const WORK_CHANNELS: usize = 2;
/// Number of channels that publish facts, which are few.
const JOURNAL_CHANNELS: usize = 1;
/// Maximum number of unconfirmed messages of a channel. All channels together: 1,500.
const BATCH_MESSAGES_MAX: usize = 500;
/// Maximum number of unconfirmed bytes of bodies of a channel. All channels together: 48 MiB.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Size of a batch from which the next one is delayed, to collect more messages: small batches cost
/// more per message, mostly in the broker.
const COALESCE_MESSAGES_MIN: usize = 16;
/// Delay of the next batch.
const COALESCE_DELAY: Duration = Duration::from_millis(1);
/// Maximum number of requests that wait for a channel, of facts and of the rest each; further
/// publishers wait.
const QUEUED_REQUESTS_MAX: usize = 64;
/// Number of consecutive channel closes without any result before messages are tried alone or
/// refused.
const CHANNEL_CLOSES_MAX: u32 = 5;
/// Number of times that missing queues are declared again for a batch.
const REDECLARE_ATTEMPTS_MAX: u32 = 3;

const _: () = assert!(MAX_MESSAGE <= BATCH_BYTES_MAX, "the largest message must fit into a batch");

/// The publisher that the whole process shares.
#[derive(Debug)]
pub(crate) struct AmqpPublisher {
    work: ChannelGroup,
    facts: ChannelGroup,
    /// Keeps the connections open.
    _handle: Arc<ConnectionHandle>,
}

/// A sender to channels that take turns.
#[derive(Debug)]
struct ChannelGroup(mpsc::Sender<BatchRequest>);

/// Messages that are sent together, within the limits of a batch, and the channel for their
/// results.
#[derive(Debug)]
struct BatchRequest {
    frames: Vec<PublishFrame>,
    bytes: usize,
    results: oneshot::Sender<Vec<Published>>,
}

impl AmqpPublisher {
    pub(crate) fn start(handle: Arc<ConnectionHandle>) -> Self {
        let work = ChannelGroup::start(&handle, WORK_CHANNELS);
        let facts = ChannelGroup::start(&handle, JOURNAL_CHANNELS);
        Self { work, facts, _handle: handle }
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let mut results = vec![Published::Unknown; batch.len()];
        let (mut work, mut facts) = (Vec::new(), Vec::new());
        for (place, outgoing) in batch.into_iter().enumerate() {
            let group = if outgoing.to == Address::Journal { &mut facts } else { &mut work };
            match PublishFrame::new(outgoing) {
                Ok(frame) => group.push((place, frame)),
                Err(why) => results[place] = Published::Invalid(why),
            }
        }
        let (work, facts) = join!(self.work.publish(work), self.facts.publish(facts));
        for (place, result) in work.into_iter().chain(facts) {
            results[place] = result;
        }
        results
    }
}

impl ChannelGroup {
    fn start(handle: &Arc<ConnectionHandle>, channels: usize) -> Self {
        let (requests, receiver) = mpsc::channel(QUEUED_REQUESTS_MAX);
        let queue = Arc::new(Mutex::new(RequestQueue { receiver, left_over: None }));
        for _ in 0..channels {
            let writer = ChannelWriter {
                queue: Arc::clone(&queue),
                connection: CurrentConnection::clone(handle),
                channel: None,
            };
            handle.spawn(writer.run());
        }
        Self(requests)
    }

    /// Publishes in batches, one after the other, which keeps the order.
    async fn publish(&self, frames: Vec<(usize, PublishFrame)>) -> Vec<(usize, Published)> {
        let (places, frames): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
        let mut results = Vec::with_capacity(places.len());
        let mut batch = FrameBatch::default();
        for frame in frames {
            if !batch.has_room_for(&frame) {
                results.extend(self.submit(mem::take(&mut batch)).await);
            }
            batch.push(frame);
        }
        if !batch.frames.is_empty() {
            results.extend(self.submit(batch).await);
        }
        places.into_iter().zip(results).collect()
    }

    async fn submit(&self, FrameBatch { frames, bytes }: FrameBatch) -> Vec<Published> {
        let count = frames.len();
        let (results, reply) = oneshot::channel();
        let request = BatchRequest { frames, bytes, results };
        let reply = async { self.0.send(request).await.ok().map(|()| reply)?.await.ok() };
        reply.await.unwrap_or_else(|| vec![Published::Unknown; count])
    }
}

#[derive(Default)]
struct FrameBatch {
    frames: Vec<PublishFrame>,
    bytes: usize,
}

impl FrameBatch {
    fn has_room_for(&self, frame: &PublishFrame) -> bool {
        self.frames.len() < BATCH_MESSAGES_MAX && self.bytes + frame.message.body.len() <= BATCH_BYTES_MAX
    }

    fn push(&mut self, frame: PublishFrame) {
        self.bytes += frame.message.body.len();
        self.frames.push(frame);
    }
}

/// Requests on their way to the channels.
struct RequestQueue {
    receiver: mpsc::Receiver<BatchRequest>,
    /// The request that did not fit into the last batch.
    left_over: Option<BatchRequest>,
}

impl RequestQueue {
    /// Waits for a request, and adds all waiting requests that fit into the same batch. `None` if
    /// all publishers are gone.
    async fn next_batch(&mut self) -> Option<Vec<BatchRequest>> {
        let first = match self.left_over.take() {
            Some(request) => request,
            None => self.receiver.recv().await?,
        };
        let (mut frames, mut bytes) = (first.frames.len(), first.bytes);
        let mut requests = vec![first];
        while let Ok(request) = self.receiver.try_recv() {
            frames += request.frames.len();
            bytes += request.bytes;
            if frames > BATCH_MESSAGES_MAX || bytes > BATCH_BYTES_MAX {
                self.left_over = Some(request);
                break;
            }
            requests.push(request);
        }
        Some(requests)
    }
}

/// The task that owns one publishing channel. Two tasks on one channel would receive each other's
/// confirms.
struct ChannelWriter {
    queue: Arc<Mutex<RequestQueue>>,
    connection: CurrentConnection,
    channel: Option<OwnedChannel>,
}

impl ChannelWriter {
    /// Ends with the connection, or when all publishers are gone. Pending requests then end as
    /// unknown.
    async fn run(mut self) {
        let end = self.connection.end.clone();
        tokio::select! {
            () = end.wait() => {}
            () = self.send_batches() => {}
        }
        if let Some(mut channel) = self.channel {
            channel.close().await; // its waits are bounded
        }
    }

    async fn send_batches(&mut self) {
        let mut coalesce = false;
        loop {
            let batch = {
                let mut queue = self.queue.lock().await;
                if coalesce && queue.left_over.is_none() {
                    sleep(COALESCE_DELAY).await; // under the lock, so that no other channel takes any
                }
                queue.next_batch().await
            };
            let Some(requests) = batch else { return };
            let (frames, waiting) = split_requests(requests);
            coalesce = frames.len() >= COALESCE_MESSAGES_MIN;
            let Some(mut results) = self.send_all(frames).await else { return };
            for (count, waiting) in waiting.into_iter().rev() {
                let own = results.split_off(results.len() - count);
                let _ = waiting.send(own); // it fails if the caller is gone
            }
        }
    }

    /// Sends until every message has a result, over as many generations as needed: messages that
    /// were unconfirmed when one was lost are resent in the next, stored or not. `None` after the
    /// final termination.
    async fn send_all(&mut self, frames: Vec<PublishFrame>) -> Option<Vec<Published>> {
        let mut results = vec![Published::Unknown; frames.len()];
        let unanswered = self.send_batch(frames.into_iter().enumerate().collect(), &mut results).await?;
        // The broker closes the channel because of one of them. Sent alone, each shows if it is
        // that one.
        for (place, frame) in unanswered {
            if !self.send_batch(vec![(place, frame)], &mut results).await?.is_empty() {
                let why = format!("the broker closes every channel over it, {CHANNEL_CLOSES_MAX} in a row");
                results[place] = Published::Invalid(why);
            }
        }
        Some(results)
    }

    /// Returns the messages for which the broker only closed channels, [`CHANNEL_CLOSES_MAX`] in a
    /// row. Lost connections do not count, because the messages did not cause them.
    async fn send_batch(
        &mut self,
        mut left: Vec<(usize, PublishFrame)>,
        results: &mut [Published],
    ) -> Option<Vec<(usize, PublishFrame)>> {
        let (mut closes, mut redeclared, mut confirm_timeout) = (0, 0, CONFIRM_TIMEOUT);
        let mut backoff = ReconnectBackoff::new();
        while !left.is_empty() && closes < CHANNEL_CLOSES_MAX {
            let channel = self.ensure_channel().await?;
            let frames: Vec<&PublishFrame> = left.iter().map(|(_, frame)| frame).collect();
            let BatchConfirms { results: mut sent, caused_close, timed_out } = tokio::select! {
                biased;
                sent = confirm_batch::send(channel, &frames, confirm_timeout, || channel.is_blocked()) => sent,
                () = channel.wait_terminated() => continue,
            };
            if redeclared < REDECLARE_ATTEMPTS_MAX && self.redeclare_missing(&frames, &mut sent).await? {
                redeclared += 1;
            }
            let before = left.len();
            left = left
                .into_iter()
                .zip(sent)
                .filter_map(|((place, frame), result)| {
                    let again = result == Published::Unknown;
                    results[place] = result;
                    again.then_some((place, frame))
                })
                .collect();
            if timed_out {
                self.channel = None;
                confirm_timeout = (confirm_timeout * 2).min(CONFIRM_TIMEOUT_MAX);
                let (count, transport) = (left.len(), &self.connection.config);
                tracing::warn!("{transport} leaves {count} messages without an answer; they are sent again");
                if left.iter().any(|(_, frame)| frame.is_fact()) {
                    self.wait_for_journal().await?; // instead of ever longer timeouts
                }
            } else if left.len() < before {
                closes = 0;
            } else if caused_close {
                closes += 1;
            }
            if !left.is_empty() {
                tracing::debug!("resending {} messages", left.len());
                sleep(backoff.next_delay()).await;
            }
        }
        Some(left)
    }

    /// Declares the opened lanes again, or the journal, if a message was unroutable although its
    /// queue should exist; such messages become unknown. Returns true if there were any, `None`
    /// after the final termination.
    async fn redeclare_missing(&self, frames: &[&PublishFrame], sent: &mut [Published]) -> Option<bool> {
        let is_expected = |frame: &PublishFrame| self.connection.expects_queue(&frame.key);
        let mut missing = false;
        for (frame, result) in frames.iter().zip(sent) {
            if *result == Published::Unroutable && is_expected(frame) {
                (missing, *result) = (true, Published::Unknown);
            }
        }
        if missing {
            tracing::warn!("{} has lost queues; declaring them again", self.connection.config);
            if frames.iter().any(|frame| frame.is_fact()) {
                self.wait_for_journal().await?;
            } else {
                let generation = self.connection.generation().await.ok()?;
                if let Err(error) = self.connection.redeclare_lanes(&generation).await {
                    tracing::warn!("cannot declare them again: {error}");
                }
            }
        }
        Some(missing)
    }

    /// Waits until the journal is back, or until it is certain that there is none, which the next
    /// results then report. `None` after the final termination.
    async fn wait_for_journal(&self) -> Option<()> {
        loop {
            let generation = self.connection.generation().await.ok()?;
            match self.connection.wait_for_journal(&generation).await {
                Ok(()) => return Some(()),
                Err(error) if error.is_retryable() => {} // the generation is over
                Err(error) => {
                    tracing::warn!("no fact can be published: {error}");
                    return Some(());
                }
            }
        }
    }

    /// Returns the channel, or opens a new one in a new generation or after the broker closed the
    /// last one because of a message. `None` after the final termination.
    async fn ensure_channel(&mut self) -> Option<&OwnedChannel> {
        while self.channel.as_ref().is_none_or(|channel| !channel.is_open() || !channel.status().confirm()) {
            self.channel = None;
            let generation = self.connection.generation().await.ok()?;
            match generation.open_publishing_channel().await {
                Ok(channel) => self.channel = Some(channel),
                Err(error) => generation.end.terminate(format!("nothing can be published: {error}")),
            }
        }
        self.channel.as_ref()
    }
}

/// Number of results of a request, and the channel that takes them.
type PendingReply = (usize, oneshot::Sender<Vec<Published>>);

/// Returns all messages of a batch, and the pending replies in the same order.
fn split_requests(requests: Vec<BatchRequest>) -> (Vec<PublishFrame>, Vec<PendingReply>) {
    let mut frames = Vec::with_capacity(requests.iter().map(|request| request.frames.len()).sum());
    let mut waiting = Vec::with_capacity(requests.len());
    for request in requests {
        waiting.push((request.frames.len(), request.results));
        frames.extend(request.frames);
    }
    (frames, waiting)
}
