//! The state that all connections share: queues and their routes, the journal, events.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{events::EventChannel, journal::StoredJournal, queue::WorkQueue};
use crate::{Lane, Message, Published, Queue, QueueRole, Shards, TransportError};

pub(super) struct MemoryBroker {
    routes: RwLock<HashMap<Queue, Route>>,
    pub(super) journal: Arc<StoredJournal>,
    pub(super) events: EventChannel,
    last_id: AtomicU64,
}

/// The destination of a queue's messages.
enum Route {
    /// The queue itself.
    Queue(Arc<WorkQueue>),
    /// Another queue, after a delay. A retry queue has no consumers of its own.
    Delayed(Duration, Arc<WorkQueue>),
}

impl MemoryBroker {
    pub(super) fn new() -> Self {
        Self {
            routes: RwLock::default(),
            journal: Arc::new(StoredJournal::new()),
            events: EventChannel::new(),
            last_id: AtomicU64::new(0),
        }
    }

    /// Returns a new id for a connection or a consumer. A consumer's id is the generation of its
    /// deliveries.
    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn open_lane(&self, lane: &Lane) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for role in QueueRole::ALL {
            open(&mut routes, role.of(lane));
        }
    }

    /// Opens shards until there are `at_least` this many, and returns the number that exist.
    pub(super) fn open_shards(&self, lane: &Lane, at_least: Shards) -> Shards {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for shard in at_least.queues() {
            open(&mut routes, shard.of(lane));
        }
        let mut found = at_least;
        while let Some(more) = found.checked_next().filter(|more| routes.contains_key(&more.last().of(lane)))
        {
            found = more;
        }
        found
    }

    pub(super) fn publish(&self, to: &Queue, message: Message) -> Published {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        match routes.get(to) {
            None => Published::Unroutable,
            Some(Route::Queue(queue)) => queue.push(message),
            Some(Route::Delayed(delay, queue)) => queue.push_delayed(*delay, message),
        }
    }

    pub(super) fn consumable(&self, name: &Queue) -> Result<Arc<WorkQueue>, TransportError> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        match routes.get(name) {
            Some(Route::Queue(queue)) => Ok(Arc::clone(queue)),
            Some(Route::Delayed(_, target)) => Err(TransportError::Invalid(format!(
                "{name} takes no consumers: its messages are delayed (hint: consume {target})"
            ))),
            None => Err(TransportError::Disconnected {
                transport: "memory".into(),
                reason: format!("there is no queue {name} (hint: its lane was not opened)"),
            }),
        }
    }

    /// Removes every consumer of the connection.
    pub(super) fn end_connection(&self, connection: u64) {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        for route in routes.values() {
            if let Route::Queue(queue) = route {
                queue.remove_consumers(|consumer| consumer.connection.id == connection);
            }
        }
    }
}

/// Creates the queue if it is missing, and before it the target of its delay.
fn open(routes: &mut HashMap<Queue, Route>, name: Queue) -> Arc<WorkQueue> {
    if let Some(Route::Queue(queue) | Route::Delayed(_, queue)) = routes.get(&name) {
        return Arc::clone(queue);
    }
    let spec = name.role.spec();
    let (route, queue) = match spec.delay {
        Some((delay, target)) => {
            let target = open(routes, target.of(&name.lane));
            (Route::Delayed(delay, Arc::clone(&target)), target)
        }
        None => {
            let queue = Arc::new(WorkQueue::new(name.clone(), spec));
            (Route::Queue(Arc::clone(&queue)), queue)
        }
    };
    routes.insert(name, route);
    queue
}
