//! Listens to events, through a queue that lives and dies with the listener.

use std::sync::Arc;

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
    properties,
    topology::{EVENTS, number, table, text},
};

/// How many events may wait for a slow listener. Beyond that it misses the oldest.
pub const EVENTS_MAX_WAITING: u64 = 10_000;

#[derive(Debug)]
pub(crate) struct AmqpEvents {
    feed: Feed,
}

impl AmqpEvents {
    pub(crate) async fn listen(
        generation: Arc<Generation>,
        filter: &EventFilter,
    ) -> Result<Self, TransportError> {
        let channel = generation.channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let arguments = table([
            ("x-queue-type", text("classic")),
            ("x-max-length", number(EVENTS_MAX_WAITING)),
            ("x-overflow", text("drop-head")),
        ]);
        let declare = channel.queue_declare("".into(), options, arguments);
        let queue = generation.ask("a queue for events", declare).await?.name().clone();
        let (key, options) = (binding_key(filter).into(), QueueBindOptions::default());
        let bind = channel.queue_bind(queue.clone(), EVENTS.into(), key, options, FieldTable::default());
        generation.ask("events", bind).await?;
        Ok(Self { feed: Feed::open(generation, channel, queue, FieldTable::default()).await? })
    }
}

#[async_trait]
impl EventReader for AmqpEvents {
    async fn next(&mut self) -> Result<Message, TransportError> {
        let event = self.feed.next().await?;
        Ok(properties::incoming(&event.properties, Bytes::from(event.data), false))
    }
}

fn binding_key(filter: &EventFilter) -> String {
    match filter {
        EventFilter::Lane(lane) => format!("*.{lane}.*"),
        EventFilter::Job(job) => format!("job.*.{job}"),
    }
}
