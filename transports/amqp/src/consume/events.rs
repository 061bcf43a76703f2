//! Listens to events, through a queue that lives and dies with the listener.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gristmill_shared::{EventFilter, EventReader, JobId, Message, TransportError};
use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};

use crate::{
    failure::Wish,
    consume::stream_reader::Feed,
    connection::generation::Generation,
    connection::handle::Link,
    publish::properties,
    consume::resubscribe::Renewed,
    topology::{EVENTS, EVENTS_QUEUE, number, table, text},
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

pub(crate) async fn listen(generation: Arc<Generation>, key: String) -> Result<Feed, TransportError> {
    let channel = generation.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let arguments = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", number(EVENTS_MAX_WAITING)),
        ("x-overflow", text("drop-head")),
    ]);
    // A name of ours rather than the broker's, so that rights can be told apart; any id that is unique will do.
    let queue = ShortString::from(format!("{EVENTS_QUEUE}{}", JobId::generate()));
    let declare = channel.queue_declare(queue.clone(), options, arguments);
    generation.ask(Wish::DeclareQueue, "a queue for events", declare).await?;
    let options = QueueBindOptions::default();
    let bind = channel.queue_bind(queue.clone(), EVENTS.into(), key.into(), options, FieldTable::default());
    generation.ask(Wish::Bind, "events", bind).await?;
    Feed::open(generation, channel, queue, FieldTable::default()).await
}

pub(crate) fn binding_key(filter: &EventFilter) -> String {
    match filter {
        EventFilter::Lane(lane) => format!("*.{lane}.*"),
        EventFilter::Job(job) => format!("job.*.{job}"),
    }
}
