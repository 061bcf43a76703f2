//! The publisher: every answer is ready at once.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::task::coop::consume_budget;

use super::{MAX_MESSAGE, MemoryConnection, broker::MemoryBroker};
use crate::{Address, Outgoing, Published, Publisher};

pub(super) struct MemoryPublisher {
    broker: Arc<MemoryBroker>,
    connection: MemoryConnection,
}

impl MemoryPublisher {
    pub(super) fn new(broker: Arc<MemoryBroker>, connection: MemoryConnection) -> Self {
        Self { broker, connection }
    }

    fn publish_one(&self, Outgoing { to, message }: Outgoing) -> Published {
        let size = message.body.len();
        if size > MAX_MESSAGE {
            return Published::Invalid(format!(
                "a body of {size} bytes is more than one message can carry ({MAX_MESSAGE} bytes)"
            ));
        }
        if self.connection.closed.is_cancelled() {
            return Published::Unknown;
        }
        match to {
            Address::Queue(queue) => self.broker.publish(&queue, message),
            Address::Journal => self.broker.journal.append(message),
            Address::Events(topic) => self.broker.events.send(topic, message),
        }
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        consume_budget().await; // an endless publisher must not starve other tasks of the thread
        batch.into_iter().map(|outgoing| self.publish_one(outgoing)).collect()
    }
}

impl fmt::Debug for MemoryPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPublisher").field("connection", &self.connection).finish_non_exhaustive()
    }
}
