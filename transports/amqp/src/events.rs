//! Listens to events, through a queue that lives and dies with the listener.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gristmill_shared::{EventFilter, EventReader, Message, TransportError};
use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};

use crate::{
    feed::Feed,
    generation::Generation,
    link::Link,
    properties,
    renewed::Renewed,
    topology::{EVENTS, number, table, text},
};

/// How many events may wait for a slow listener. Beyond that it misses the oldest.
pub const EVENTS_MAX_WAITING: u64 = 10_000;

pub(crate) struct AmqpEvents {
    key: String,
    feed: Renewed<Feed>,
}

impl AmqpEvents {
    pub(crate) async fn listen(link: Arc<Link>, filter: EventFilter) -> Result<Self, TransportError> {
        let key = binding_key(&filter);
        let listen = |generation| listen(generation, key.clone());
        let feed = Renewed::make(link, format!("listening to {key}"), listen).await?;
        Ok(Self { key, feed })
    }
}

#[async_trait]
impl EventReader for AmqpEvents {
    /// What is told while there is no connection is missed.
    async fn next(&mut self) -> Result<Message, TransportError> {
        loop {
            let key = &self.key;
            let feed = self.feed.get(|| {
                let key = key.clone();
                move |generation| listen(generation, key.clone())
            });
            let feed = feed.await?;
            match feed.next().await {
                Ok(event) => {
                    return Ok(properties::incoming(&event.properties, Bytes::from(event.data), false));
                }
                Err(error) => {
                    let generation = feed.generation();
                    self.feed.lost(generation, &error);
                }
            }
        }
    }
}

impl fmt::Debug for AmqpEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpEvents").field("key", &self.key).finish_non_exhaustive()
    }
}

async fn listen(generation: Arc<Generation>, key: String) -> Result<Feed, TransportError> {
    let channel = generation.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let arguments = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", number(EVENTS_MAX_WAITING)),
        ("x-overflow", text("drop-head")),
    ]);
    let declare = channel.queue_declare("".into(), options, arguments);
    let queue = generation.ask("a queue for events", declare).await?.name().clone();
    let options = QueueBindOptions::default();
    let bind = channel.queue_bind(queue.clone(), EVENTS.into(), key.into(), options, FieldTable::default());
    generation.ask("events", bind).await?;
    Feed::open(generation, channel, queue, FieldTable::default()).await
}

fn binding_key(filter: &EventFilter) -> String {
    match filter {
        EventFilter::Lane(lane) => format!("*.{lane}.*"),
        EventFilter::Job(job) => format!("job.*.{job}"),
    }
}
