//! One consumer of one queue.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::{sync::Notify, task::coop::consume_budget, time::timeout_at};

use super::{
    Connection, disconnected,
    queue::{Handed, Taken, WorkQueue},
};
use crate::{Consumer, Delivery, Receipt, Token, TransportError};

#[derive(Debug)]
pub(super) struct MemoryConsumer {
    queue: Arc<WorkQueue>,
    generation: u64,
    wake: Arc<Notify>,
}

impl MemoryConsumer {
    pub(super) fn join(
        queue: Arc<WorkQueue>,
        generation: u64,
        connection: Connection,
        prefetch: u16,
    ) -> Self {
        let wake = queue.join(generation, connection, prefetch.max(1).into());
        Self { queue, generation, wake }
    }

    fn deliver(&self, handed: Vec<Handed>) -> Vec<Delivery> {
        let deliver = |handed: Handed| {
            let token = Token { generation: self.generation, tag: handed.tag };
            Delivery {
                message: Arc::unwrap_or_clone(handed.message),
                deliveries_before: handed.deliveries_before,
                receipt: Receipt::new(token, Arc::clone(&self.queue) as _),
            }
        };
        handed.into_iter().map(deliver).collect()
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    /// A `max` of 0 counts as 1, since an empty vector has a meaning of its own.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        consume_budget().await; // a queue that never runs dry must not keep others off the thread
        loop {
            match self.queue.take(self.generation, max.max(1)) {
                Taken::Some(handed) => return Ok(self.deliver(handed)),
                Taken::Stopped => return Ok(Vec::new()),
                Taken::Gone => return Err(disconnected()),
                Taken::Nothing(None) => self.wake.notified().await,
                Taken::Nothing(Some(ripe_at)) => drop(timeout_at(ripe_at, self.wake.notified()).await),
            }
        }
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.queue.stop(self.generation) { Ok(()) } else { Err(disconnected()) }
    }

    async fn close(self: Box<Self>) {}
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.queue.leave_one(self.generation);
    }
}
