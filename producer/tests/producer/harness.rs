//! Common parts of the tests: a job that counts, and a drain of the queues.

use std::{future::Future, ops::ControlFlow, time::Duration};

use gristmill_producer::SubmitOptions;
use gristmill_shared::{
    Consumer, Job, JobError, Lane, Message, Plan, QueueRole, TaskContext, TaskError, TaskIndex, Transport,
    wire::{Batch, SinkMessage, decode},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A job that counts to `tasks`. It may fail on its way, or plan another number.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) tasks: u64,
    pub(crate) plan: Option<u64>,
    pub(crate) fail_at: Option<u64>,
    #[serde(default)]
    pub(crate) panic: bool,
}

impl Job for Count {
    const KIND: &'static str = "count";
    type Task = u64;
    type Output = ();
    type Report = ();

    fn plan(&self) -> Result<Plan, JobError> {
        if self.tasks == 0 {
            return Err(JobError::new("nothing to count"));
        }
        Ok(self.plan.map_or_else(Plan::unknown, Plan::of))
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        assert!(!self.panic, "no hands");
        let fail_at = self.fail_at;
        (0..self.tasks)
            .map(move |n| if fail_at == Some(n) { Err(JobError::new("out of fingers")) } else { Ok(n) })
    }
    fn process(&self, _: u64, _: &TaskContext) -> Result<(), TaskError> {
        Ok(())
    }
    fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

pub(crate) fn count(tasks: u64) -> Count {
    Count { tasks, ..Count::default() }
}

pub(crate) fn options(batch: u32) -> SubmitOptions {
    SubmitOptions { batch: Some(batch), ..SubmitOptions::default() }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.expect("it takes too long")
}

pub(crate) async fn consume(transport: &dyn Transport, role: QueueRole) -> Box<dyn Consumer> {
    transport.consume(&role.of(&Lane::default()), 500).await.unwrap()
}

/// Consumes all messages that are ready in a queue.
pub(crate) async fn drain(transport: &dyn Transport, role: QueueRole) -> Vec<Message> {
    let mut consumer = consume(transport, role).await;
    let mut all = Vec::new();
    while let Ok(deliveries) = timeout(Duration::from_millis(50), consumer.recv(500)).await {
        for delivery in deliveries.unwrap() {
            delivery.receipt.ack();
            all.push(delivery.message);
        }
    }
    all
}

pub(crate) fn first_and_count(message: &Message) -> (u64, u32) {
    let batch = decode::<Batch<'_>>(message).unwrap();
    let tasks: Vec<u64> = serde_json::from_str(batch.tasks.get()).unwrap();
    let indices: Vec<u64> = (batch.first.0..batch.first.0 + u64::from(batch.count)).collect();
    assert_eq!(tasks, indices, "a task has another index than its place in the split");
    (batch.first.0, batch.count)
}

pub(crate) fn seal(messages: &[Message]) -> (u64, String) {
    let seals: Vec<_> = messages
        .iter()
        .filter_map(|message| match SinkMessage::decode(message).unwrap() {
            SinkMessage::Sealed(sealed) => Some((sealed.total, sealed.digest)),
            _ => None,
        })
        .collect();
    assert_eq!(seals.len(), 1);
    seals[0].clone()
}
