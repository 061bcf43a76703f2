//! A reader of events, through a queue that exists as long as the reader.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gristmill_shared::{EventFilter, EventReader, JobId, Message, TransportError};
use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};

use super::{resubscribe::AutoRecover, stream_reader::StreamReader};
use crate::{
    connection::{ConnectionHandle, Generation},
    failure::Operation,
    publish::properties,
    topology::{EVENTS_EXCHANGE, EVENTS_QUEUE_PREFIX, number, table, text},
};

/// Maximum number of events that wait for a slow reader. Beyond that, the oldest are dropped.
pub const EVENTS_MAX_WAITING: u64 = 10_000;

pub(crate) struct AmqpEvents {
    key: String,
    reader: AutoRecover<StreamReader>,
}

impl AmqpEvents {
    pub(crate) async fn subscribe(
        handle: Arc<ConnectionHandle>,
        filter: EventFilter,
    ) -> Result<Self, TransportError> {
        let key = binding_key(&filter);
        let subscribe = |generation| subscribe(generation, key.clone());
        let reader = AutoRecover::open(handle, format!("listening to {key}"), subscribe).await?;
        Ok(Self { key, reader })
    }
}

#[async_trait]
impl EventReader for AmqpEvents {
    /// Events that are published while there is no connection are missed.
    async fn next(&mut self) -> Result<Message, TransportError> {
        loop {
            let key = &self.key;
            let reader = self.reader.get(|| {
                let key = key.clone();
                move |generation| subscribe(generation, key.clone())
            });
            let reader = reader.await?;
            match reader.next().await {
                Ok(event) => {
                    return Ok(properties::decode(&event.properties, Bytes::from(event.data), false));
                }
                Err(error) => {
                    let generation = reader.generation();
                    self.reader.mark_lost(generation, &error);
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

pub(crate) async fn subscribe(
    generation: Arc<Generation>,
    key: String,
) -> Result<StreamReader, TransportError> {
    let channel = generation.open_channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let arguments = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", number(EVENTS_MAX_WAITING)),
        ("x-overflow", text("drop-head")),
    ]);
    // The name is chosen here and not by the broker, so that permissions can match it; any unique
    // id will do.
    let queue = ShortString::from(format!("{EVENTS_QUEUE_PREFIX}{}", JobId::generate()));
    let declare = channel.queue_declare(queue.clone(), options, arguments);
    generation.request(Operation::DeclareQueue, "a queue for events", declare).await?;
    let options = QueueBindOptions::default();
    let bind =
        channel.queue_bind(queue.clone(), EVENTS_EXCHANGE.into(), key.into(), options, FieldTable::default());
    generation.request(Operation::Bind, "events", bind).await?;
    StreamReader::open(generation, channel, queue, FieldTable::default()).await
}

pub(crate) fn binding_key(filter: &EventFilter) -> String {
    match filter {
        EventFilter::Lane(lane) => format!("*.{lane}.*"),
        EventFilter::Job(job) => format!("job.*.{job}"),
    }
}
