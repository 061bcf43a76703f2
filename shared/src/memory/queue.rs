//! A work queue: what waits, who consumes, and what each consumer holds.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Connection, lock};
use crate::{Message, Published, Queue, QueueSpec, Settlement, Settler, Token};

pub(super) struct WorkQueue {
    name: Queue,
    spec: QueueSpec,
    state: Mutex<State>,
}

/// At rest, either nothing is ready or no consumer has room: see [`State::hand_out`].
#[derive(Default)]
struct State {
    /// In the order of arrival, which [`Entry::tag`] keeps.
    ready: VecDeque<Entry>,
    ready_bytes: u64,
    /// By the time when they ripen, and then by arrival.
    unripe: BTreeMap<(Instant, u64), Message>,
    /// The oldest first.
    seats: Vec<Seat>,
    /// The seat that is looked at first for the next message.
    turn: usize,
    last_tag: u64,
}

/// A message in the queue. Shared, so that it is copied for its consumer without the lock.
struct Entry {
    tag: u64,
    message: Arc<Message>,
    deliveries_before: u32,
}

/// A consumer's place at the queue.
pub(super) struct Seat {
    generation: u64,
    pub(super) connection: Connection,
    prefetch: usize,
    stopped: bool,
    unsettled: BTreeMap<u64, Entry>,
    /// Those of `unsettled` that were not taken yet.
    arrived: VecDeque<u64>,
    wake: Arc<Notify>,
}

/// What a consumer finds.
pub(super) enum Taken {
    /// Deliveries, at least one.
    Some(Vec<Handed>),
    /// Nothing yet, and when that may change by itself.
    Nothing(Option<Instant>),
    /// Nothing any more: the consumer was stopped.
    Stopped,
    /// The consumer's connection is closed.
    Gone,
}

/// A delivery in the making.
pub(super) struct Handed {
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
            return Published::Rejected;
        }
        state.append(message);
        state.hand_out(self.spec.single_active_consumer);
        Published::Stored
    }

    /// The message is pushed when `delay` has passed. Whoever consumes then does it, so that no timer runs for it.
    pub(super) fn push_later(&self, delay: Duration, message: Message) -> Published {
        let mut state = lock(&self.state);
        state.last_tag += 1;
        let key = (Instant::now() + delay, state.last_tag);
        state.unripe.insert(key, message);
        if state.unripe.first_key_value().is_some_and(|(first, _)| *first == key) {
            state.seats.iter().for_each(|seat| seat.wake.notify_one()); // they wait for a later one
        }
        Published::Stored
    }

    pub(super) fn join(&self, generation: u64, connection: Connection, prefetch: usize) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        let mut state = lock(&self.state);
        state.seats.push(Seat {
            generation,
            connection,
            prefetch,
            stopped: false,
            unsettled: BTreeMap::new(),
            arrived: VecDeque::new(),
            wake: Arc::clone(&wake),
        });
        state.hand_out(self.spec.single_active_consumer);
        wake
    }

    pub(super) fn take(&self, generation: u64, max: usize) -> Taken {
        let mut state = lock(&self.state);
        if state.ripen(Instant::now()) {
            state.hand_out(self.spec.single_active_consumer);
        }
        let ripe_at = state.unripe.first_key_value().map(|((at, _), _)| *at);
        let Some(seat) = state.seat(generation) else { return Taken::Gone };
        let count = seat.arrived.len().min(max);
        if count > 0 {
            let arrived = seat.arrived.drain(..count);
            let handed = arrived.filter_map(|tag| seat.unsettled.get(&tag)).map(Entry::hand).collect();
            return Taken::Some(handed);
        }
        if seat.stopped { Taken::Stopped } else { Taken::Nothing(ripe_at) }
    }

    /// The consumer is handed nothing more. Answers whether it is still there.
    pub(super) fn stop(&self, generation: u64) -> bool {
        let mut state = lock(&self.state);
        let Some(seat) = state.seat(generation) else { return false };
        seat.stopped = true;
        state.hand_out(self.spec.single_active_consumer); // to whoever takes over
        true
    }

    /// Consumers go, and what they hold comes back to its old place.
    pub(super) fn leave(&self, goes: impl Fn(&Seat) -> bool) {
        let mut state = lock(&self.state);
        let gone: Vec<_> = state.seats.extract_if(.., |seat| goes(seat)).collect();
        for seat in gone {
            // The last first: each of the others then comes to stand before everything that is ready.
            seat.unsettled.into_values().rev().for_each(|entry| state.put_back(entry));
            seat.wake.notify_one();
        }
        state.hand_out(self.spec.single_active_consumer);
    }

    pub(super) fn leave_one(&self, generation: u64) {
        self.leave(|seat| seat.generation == generation);
    }
}

impl State {
    fn seat(&mut self, generation: u64) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.generation == generation)
    }

    fn append(&mut self, message: Message) {
        self.last_tag += 1;
        self.ready_bytes += message.body.len() as u64;
        self.ready.push_back(Entry { tag: self.last_tag, message: Arc::new(message), deliveries_before: 0 });
    }

    fn put_back(&mut self, entry: Entry) {
        let place = self.ready.partition_point(|other| other.tag < entry.tag);
        self.ready_bytes += entry.message.body.len() as u64;
        let deliveries_before = entry.deliveries_before.saturating_add(1);
        self.ready.insert(place, Entry { deliveries_before, ..entry });
    }

    /// Answers whether anything was ripe.
    fn ripen(&mut self, now: Instant) -> bool {
        let mut ripe = false;
        while let Some(first) = self.unripe.first_entry()
            && first.key().0 <= now
        {
            let message = first.remove();
            self.append(message);
            ripe = true;
        }
        ripe
    }

    /// Hands what is ready to the consumers that have room, in turn. Follows whatever adds messages or room.
    fn hand_out(&mut self, single: bool) {
        while let Some(place) = self.seat_with_room(single)
            && let Some(entry) = self.ready.pop_front()
        {
            self.ready_bytes -= entry.message.body.len() as u64;
            self.turn = place + 1;
            let seat = &mut self.seats[place];
            if seat.arrived.is_empty() {
                seat.wake.notify_one();
            }
            seat.arrived.push_back(entry.tag);
            seat.unsettled.insert(entry.tag, entry);
        }
    }

    fn seat_with_room(&self, single: bool) -> Option<usize> {
        if single {
            let active = self.seats.iter().position(|seat| !seat.stopped)?;
            return self.seats[active].has_room().then_some(active);
        }
        let count = self.seats.len();
        (self.turn..self.turn + count).map(|place| place % count).find(|&place| self.seats[place].has_room())
    }
}

impl Seat {
    fn has_room(&self) -> bool {
        !self.stopped && self.connection.alive().is_ok() && self.unsettled.len() < self.prefetch
    }
}

impl Entry {
    fn hand(&self) -> Handed {
        Handed {
            tag: self.tag,
            message: Arc::clone(&self.message),
            deliveries_before: self.deliveries_before,
        }
    }
}

impl Settler for WorkQueue {
    /// A consumer that is gone, or does not hold that message, settles nothing.
    fn settle(&self, token: Token, how: Settlement) {
        let mut state = lock(&self.state);
        let Some(seat) = state.seat(token.generation) else { return };
        let Some(entry) = seat.unsettled.remove(&token.tag) else { return };
        let acked = match how {
            Settlement::Ack => Some(entry),
            Settlement::Requeue => {
                state.put_back(entry);
                None
            }
        };
        state.hand_out(self.spec.single_active_consumer);
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
