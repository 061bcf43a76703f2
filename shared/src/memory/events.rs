//! Events: broadcast to current readers, never stored.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{MemoryConnection, disconnected};
use crate::{EventFilter, EventReader, Message, Published, Topic, TransportError};

/// The number of events that may wait for the slowest reader. Beyond that it misses the oldest.
pub(super) const EVENTS_MAX_WAITING: usize = 8_192;

type TopicMessage = Arc<(Topic, Message)>;

pub(super) struct EventChannel(broadcast::Sender<TopicMessage>);

impl EventChannel {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(EVENTS_MAX_WAITING))
    }

    pub(super) fn send(&self, topic: Topic, message: Message) -> Published {
        let _ = self.0.send(Arc::new((topic, message))); // fails if there is no reader, which is no error
        Published::Confirmed
    }
}

#[derive(Debug)]
pub(super) struct MemoryEventReader {
    events: broadcast::Receiver<TopicMessage>,
    connection: MemoryConnection,
    filter: EventFilter,
}

impl MemoryEventReader {
    pub(super) fn subscribe(
        channel: &EventChannel,
        connection: MemoryConnection,
        filter: EventFilter,
    ) -> Self {
        Self { events: channel.0.subscribe(), connection, filter }
    }
}

#[async_trait]
impl EventReader for MemoryEventReader {
    async fn next(&mut self) -> Result<Message, TransportError> {
        loop {
            match self.connection.cancel_on_close(self.events.recv()).await? {
                Ok(event) if self.filter.matches(&event.0) => return Ok(event.1.clone()),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "a slow reader missed events"),
                Err(RecvError::Closed) => return Err(disconnected()),
            }
        }
    }
}
