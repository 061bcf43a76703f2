//! One consumer of one queue.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::{sync::Notify, task::coop::consume_budget, time::timeout_at};

use super::{
    MemoryConnection, disconnected,
    queue::{PendingDelivery, TakeResult, WorkQueue},
};
use crate::{Consumer, Delivery, Receipt, Token, TransportError};

#[derive(Debug)]
pub(super) struct MemoryConsumer {
    queue: Arc<WorkQueue>,
    generation: u64,
    wake: Arc<Notify>,
}

impl MemoryConsumer {
    pub(super) fn subscribe(
        queue: Arc<WorkQueue>,
        generation: u64,
        connection: MemoryConnection,
        prefetch: u16,
    ) -> Self {
        let wake = queue.add_consumer(generation, connection, prefetch.max(1).into());
        Self { queue, generation, wake }
    }

    fn deliver(&self, taken: Vec<PendingDelivery>) -> Vec<Delivery> {
        let deliver = |taken: PendingDelivery| {
            let token = Token { generation: self.generation, tag: taken.tag };
            Delivery {
                message: Arc::unwrap_or_clone(taken.message),
                deliveries_before: taken.deliveries_before,
                receipt: Receipt::new(token, Arc::clone(&self.queue) as _),
            }
        };
        taken.into_iter().map(deliver).collect()
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    /// A `max` of 0 counts as 1, since an empty vector means the end.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        consume_budget().await; // a queue that is never empty must not starve other tasks of the thread
        loop {
            match self.queue.take(self.generation, max.max(1)) {
                TakeResult::Some(taken) => return Ok(self.deliver(taken)),
                TakeResult::Stopped => return Ok(Vec::new()),
                TakeResult::Gone => return Err(disconnected()),
                TakeResult::Nothing(None) => self.wake.notified().await,
                TakeResult::Nothing(Some(due_at)) => drop(timeout_at(due_at, self.wake.notified()).await),
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
        self.queue.remove_consumer(self.generation);
    }
}
