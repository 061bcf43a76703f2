//! What all connections share: which queues there are, and what goes where.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{events::Events, journal::Journal, queue::WorkQueue};
use crate::{Lane, Message, Published, Queue, QueueRole, Shards, TransportError};

pub(super) struct Broker {
    routes: RwLock<HashMap<Queue, Route>>,
    pub(super) journal: Journal,
    pub(super) events: Events,
    last_id: AtomicU64,
}

/// Where a queue's messages go.
enum Route {
    /// Into the queue.
    Queue(Arc<WorkQueue>),
    /// A queue that ripens has no consumers: it is but a delay on the way into another.
    Later(Duration, Arc<WorkQueue>),
}

impl Broker {
    pub(super) fn new() -> Self {
        Self {
            routes: RwLock::default(),
            journal: Journal::new(),
            events: Events::new(),
            last_id: AtomicU64::new(0),
        }
    }

    /// Names a connection or a consumer. A consumer's is the generation of its deliveries.
    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn open_lane(&self, lane: &Lane) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for role in QueueRole::ALL {
            open(&mut routes, role.of(lane));
        }
    }

    /// How many there are then.
    pub(super) fn open_shards(&self, lane: &Lane, at_least: Shards) -> Shards {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for shard in at_least.queues() {
            open(&mut routes, shard.of(lane));
        }
        let mut there = at_least;
        while let Some(more) = there.one_more().filter(|more| routes.contains_key(&more.last().of(lane))) {
            there = more;
        }
        there
    }

    pub(super) fn publish(&self, to: &Queue, message: Message) -> Published {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        match routes.get(to) {
            None => Published::Unroutable,
            Some(Route::Queue(queue)) => queue.push(message),
            Some(Route::Later(delay, queue)) => queue.push_later(*delay, message),
        }
    }

    pub(super) fn consumable(&self, name: &Queue) -> Result<Arc<WorkQueue>, TransportError> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        match routes.get(name) {
            Some(Route::Queue(queue)) => Ok(Arc::clone(queue)),
            Some(Route::Later(_, target)) => Err(TransportError::Invalid(format!(
                "{name} has no consumers: its messages ripen (hint: consume {target})"
            ))),
            None => Err(TransportError::Disconnected {
                transport: "memory".into(),
                reason: format!("there is no queue {name} (hint: its lane was not opened)"),
            }),
        }
    }

    /// Every consumer of the connection goes.
    pub(super) fn end_connection(&self, connection: u64) {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        for route in routes.values() {
            if let Route::Queue(queue) = route {
                queue.leave(|seat| seat.connection.id == connection);
            }
        }
    }
}

/// Creates the queue if it is missing, and before it the one that it ripens to.
fn open(routes: &mut HashMap<Queue, Route>, name: Queue) -> Arc<WorkQueue> {
    if let Some(Route::Queue(queue) | Route::Later(_, queue)) = routes.get(&name) {
        return Arc::clone(queue);
    }
    let spec = name.role.spec();
    let (route, queue) = match spec.ripens {
        Some((delay, target)) => {
            let target = open(routes, target.of(&name.lane));
            (Route::Later(delay, Arc::clone(&target)), target)
        }
        None => {
            let queue = Arc::new(WorkQueue::new(name.clone(), spec));
            (Route::Queue(Arc::clone(&queue)), queue)
        }
    };
    routes.insert(name, route);
    queue
}
