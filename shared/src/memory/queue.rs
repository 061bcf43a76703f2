//! A work queue: its messages, its consumers, and the deliveries that each consumer holds.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{MemoryConnection, lock};
use crate::{Message, Published, Queue, QueueSpec, Settlement, Settler, Token};

pub(super) struct WorkQueue {
    name: Queue,
    spec: QueueSpec,
    state: Mutex<QueueState>,
}

/// At rest, either nothing is ready or no consumer has room: see [`QueueState::dispatch`].
#[derive(Default)]
struct QueueState {
    /// In the order of arrival, which [`QueuedMessage::tag`] keeps.
    ready: VecDeque<QueuedMessage>,
    ready_bytes: u64,
    /// By the time when they become ready, then by arrival.
    delayed: BTreeMap<(Instant, u64), Message>,
    /// The oldest first.
    consumers: Vec<ConsumerState>,
    /// The first candidate for the next message, as an index of `consumers`.
    next_turn: usize,
    last_tag: u64,
}

/// A message in the queue. Shared, so that it is cloned for its consumer without the lock.
struct QueuedMessage {
    tag: u64,
    message: Arc<Message>,
    deliveries_before: u32,
}

/// The state of one consumer of the queue.
pub(super) struct ConsumerState {
    generation: u64,
    pub(super) connection: MemoryConnection,
    prefetch: usize,
    stopped: bool,
    unsettled: BTreeMap<u64, QueuedMessage>,
    /// The tags of `unsettled` that `recv` has not returned yet.
    arrived: VecDeque<u64>,
    wake: Arc<Notify>,
}

/// The result of [`WorkQueue::take`].
pub(super) enum TakeResult {
    /// Deliveries, at least one.
    Some(Vec<PendingDelivery>),
    /// An empty result so far, and the time of the next delayed message, if there is one.
    Nothing(Option<Instant>),
    /// The consumer was stopped and has received everything.
    Stopped,
    /// The consumer's connection is closed.
    Gone,
}

/// A delivery without its receipt.
pub(super) struct PendingDelivery {
    pub(super) tag: u64,
    pub(super) message: Arc<Message>,
    pub(super) deliveries_before: u32,
}

impl WorkQueue {
    pub(super) fn new(name: Queue, spec: QueueSpec) -> Self {
        Self { name, spec, state: Mutex::default() }
    }

    pub(super) fn push(&self, message: Message) -> Published {
        let mut state = lock(&self.state);
        let waiting = state.ready.len() as u64;
        if self.spec.max_messages.is_some_and(|max| waiting >= max)
            || self.spec.max_bytes.is_some_and(|max| state.ready_bytes >= max)
        {
            return Published::Nacked;
        }
        state.append(message);
        state.dispatch(self.spec.single_active_consumer);
        Published::Confirmed
    }

    /// Pushes the message when `delay` has passed. The next call of [`Self::take`] does that, so
    /// that no timer is needed.
    pub(super) fn push_delayed(&self, delay: Duration, message: Message) -> Published {
        let mut state = lock(&self.state);
        state.last_tag += 1;
        let key = (Instant::now() + delay, state.last_tag);
        state.delayed.insert(key, message);
        if state.delayed.first_key_value().is_some_and(|(first, _)| *first == key) {
            // Their timers are set to a later time.
            state.consumers.iter().for_each(|consumer| consumer.wake.notify_one());
        }
        Published::Confirmed
    }

    pub(super) fn add_consumer(
        &self,
        generation: u64,
        connection: MemoryConnection,
        prefetch: usize,
    ) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        let mut state = lock(&self.state);
        state.consumers.push(ConsumerState {
            generation,
            connection,
            prefetch,
            stopped: false,
            unsettled: BTreeMap::new(),
            arrived: VecDeque::new(),
            wake: Arc::clone(&wake),
        });
        state.dispatch(self.spec.single_active_consumer);
        wake
    }

    pub(super) fn take(&self, generation: u64, max: usize) -> TakeResult {
        let mut state = lock(&self.state);
        if state.append_due(Instant::now()) {
            state.dispatch(self.spec.single_active_consumer);
        }
        let due_at = state.delayed.first_key_value().map(|((at, _), _)| *at);
        let Some(consumer) = state.consumer(generation) else { return TakeResult::Gone };
        let count = consumer.arrived.len().min(max);
        if count > 0 {
            let arrived = consumer.arrived.drain(..count);
            let taken =
                arrived.filter_map(|tag| consumer.unsettled.get(&tag)).map(QueuedMessage::deliver).collect();
            return TakeResult::Some(taken);
        }
        if consumer.stopped { TakeResult::Stopped } else { TakeResult::Nothing(due_at) }
    }

    /// Stops deliveries to the consumer. Returns false if the consumer is gone.
    pub(super) fn stop(&self, generation: u64) -> bool {
        let mut state = lock(&self.state);
        let Some(consumer) = state.consumer(generation) else { return false };
        consumer.stopped = true;
        state.dispatch(self.spec.single_active_consumer); // to the consumer that takes over
        true
    }

    /// Removes the consumers that match. Their unsettled messages return to their old places in the
    /// queue.
    pub(super) fn remove_consumers(&self, goes: impl Fn(&ConsumerState) -> bool) {
        let mut state = lock(&self.state);
        let gone: Vec<_> = state.consumers.extract_if(.., |consumer| goes(consumer)).collect();
        for consumer in gone {
            // The newest first, so that each older one is inserted at the front of the ready
            // messages.
            consumer.unsettled.into_values().rev().for_each(|entry| state.requeue_entry(entry));
            consumer.wake.notify_one();
        }
        state.dispatch(self.spec.single_active_consumer);
    }

    pub(super) fn remove_consumer(&self, generation: u64) {
        self.remove_consumers(|consumer| consumer.generation == generation);
    }
}

impl QueueState {
    fn consumer(&mut self, generation: u64) -> Option<&mut ConsumerState> {
        self.consumers.iter_mut().find(|consumer| consumer.generation == generation)
    }

    fn append(&mut self, message: Message) {
        self.last_tag += 1;
        self.ready_bytes += message.body.len() as u64;
        self.ready.push_back(QueuedMessage {
            tag: self.last_tag,
            message: Arc::new(message),
            deliveries_before: 0,
        });
    }

    fn requeue_entry(&mut self, entry: QueuedMessage) {
        let place = self.ready.partition_point(|other| other.tag < entry.tag);
        self.ready_bytes += entry.message.body.len() as u64;
        let deliveries_before = entry.deliveries_before.saturating_add(1);
        self.ready.insert(place, QueuedMessage { deliveries_before, ..entry });
    }

    /// Appends the delayed messages that are due at `now`. Returns true if there were any.
    fn append_due(&mut self, now: Instant) -> bool {
        let mut due = false;
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let message = first.remove();
            self.append(message);
            due = true;
        }
        due
    }

    /// Delivers ready messages to the consumers that have room, round robin. Must be called after
    /// every change that adds messages or room.
    fn dispatch(&mut self, single: bool) {
        while let Some(place) = self.consumer_with_room(single)
            && let Some(entry) = self.ready.pop_front()
        {
            self.ready_bytes -= entry.message.body.len() as u64;
            self.next_turn = place + 1;
            let consumer = &mut self.consumers[place];
            if consumer.arrived.is_empty() {
                consumer.wake.notify_one();
            }
            consumer.arrived.push_back(entry.tag);
            consumer.unsettled.insert(entry.tag, entry);
        }
    }

    fn consumer_with_room(&self, single: bool) -> Option<usize> {
        if single {
            let active = self.consumers.iter().position(|consumer| !consumer.stopped)?;
            return self.consumers[active].has_room().then_some(active);
        }
        let count = self.consumers.len();
        (self.next_turn..self.next_turn + count)
            .map(|place| place % count)
            .find(|&place| self.consumers[place].has_room())
    }
}

impl ConsumerState {
    fn has_room(&self) -> bool {
        !self.stopped && self.connection.check_open().is_ok() && self.unsettled.len() < self.prefetch
    }
}

impl QueuedMessage {
    fn deliver(&self) -> PendingDelivery {
        PendingDelivery {
            tag: self.tag,
            message: Arc::clone(&self.message),
            deliveries_before: self.deliveries_before,
        }
    }
}

impl Settler for WorkQueue {
    /// Settles a delivery. Does nothing if the consumer is gone or does not hold that message.
    fn settle(&self, token: Token, how: Settlement) {
        let mut state = lock(&self.state);
        let Some(consumer) = state.consumer(token.generation) else { return };
        let Some(entry) = consumer.unsettled.remove(&token.tag) else { return };
        let acked = match how {
            Settlement::Ack => Some(entry),
            Settlement::Requeue => {
                state.requeue_entry(entry);
                None
            }
        };
        state.dispatch(self.spec.single_active_consumer);
        drop(state);
        drop(acked); // frees the message without the lock
    }

    fn extend(&self, _: Token) {}
}

impl fmt::Display for WorkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl fmt::Debug for WorkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkQueue({})", self.name)
    }
}
