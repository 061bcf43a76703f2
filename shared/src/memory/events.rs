//! Events: told to whoever listens, kept for nobody.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Connection, broker::Broker, disconnected};
use crate::{EventFilter, EventReader, Message, Published, Topic, TransportError};

/// How many events may wait for the slowest reader. Beyond that it misses the oldest.
pub(super) const EVENTS_MAX_WAITING: usize = 8_192;

type Event = Arc<(Topic, Message)>;

pub(super) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(EVENTS_MAX_WAITING))
    }

    pub(super) fn tell(&self, topic: Topic, message: Message) -> Published {
        let _ = self.0.send(Arc::new((topic, message))); // it fails if nobody listens, which is no failure
        Published::Stored
    }
}

#[derive(Debug)]
pub(super) struct MemoryEvents {
    events: broadcast::Receiver<Event>,
    connection: Connection,
    filter: EventFilter,
}

impl MemoryEvents {
    pub(super) fn listen(broker: &Broker, connection: Connection, filter: EventFilter) -> Self {
        Self { events: broker.events.0.subscribe(), connection, filter }
    }
}

#[async_trait]
impl EventReader for MemoryEvents {
    async fn next(&mut self) -> Result<Message, TransportError> {
        loop {
            match self.connection.unless_closed(self.events.recv()).await? {
                Ok(event) if self.filter.wants(&event.0) => return Ok(event.1.clone()),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "a slow reader missed events"),
                Err(RecvError::Closed) => return Err(disconnected()),
            }
        }
    }
}
