//! Channels that are closed with care.

use std::{future::Future, ops::Deref};

use futures::StreamExt;
use lapin::{Channel, ConnectionStatus, Consumer, message::Delivery};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::connection::generation::ANSWER_TIMEOUT;

/// Closes a channel. The broker answers that only after it has dealt with everything sent before.
pub(crate) async fn close(channel: &Channel) {
    // It fails if the channel or the connection is gone already, which is the aim.
    let _ = timeout(ANSWER_TIMEOUT, channel.close(200, "closed".into())).await;
}

/// A channel, with the consumer and the task on it if there are any. Dropping it ends the task, closes the channel and
/// drops the consumer, in this order and in the background.
///
/// lapin closes what is dropped too, but it looks at the state first and acts later, and if the channel was closed in
/// between, it ends the whole connection. What was closed by hand it leaves alone.
#[derive(Debug)]
pub(crate) struct OwnChannel {
    channel: Channel,
    connection: ConnectionStatus,
    consumer: Option<Consumer>,
    /// The task on it, and the token that tells it to end.
    task: TaskTracker,
    leave: CancellationToken,
    /// What the generation waits for before its connections close.
    tasks: TaskTracker,
    runtime: Handle,
}

impl OwnChannel {
    pub(crate) fn new(
        channel: Channel,
        connection: ConnectionStatus,
        leave: CancellationToken,
        tasks: TaskTracker,
        runtime: Handle,
    ) -> Self {
        Self { channel, connection, consumer: None, task: TaskTracker::new(), leave, tasks, runtime }
    }

    pub(crate) fn set_consumer(&mut self, consumer: Consumer) {
        self.consumer = Some(consumer);
    }

    /// What comes to the consumer next; `None` if there is no consumer any more. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<lapin::Result<Delivery>> {
        self.consumer.as_mut()?.next().await
    }

    /// Waits until the generation is over.
    pub(crate) async fn over(&self) {
        self.leave.cancelled().await;
    }

    /// Whether it can still be used.
    pub(crate) fn is_open(&self) -> bool {
        !self.leave.is_cancelled() && self.channel.status().connected()
    }

    /// Whether the broker takes nothing from its connection just now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.blocked()
    }

    /// Runs the task that writes to the channel. It must end when the token says so.
    pub(crate) fn spawn<F>(&self, task: impl FnOnce(Channel, CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = task(self.channel.clone(), self.leave.clone());
        self.task.spawn_on(self.tasks.track_future(task), &self.runtime);
    }

    /// What dropping does, and waits for it.
    pub(crate) fn close(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.leave.cancel();
        self.task.close();
        let (task, channel, consumer) = (self.task.clone(), self.channel.clone(), self.consumer.take());
        async move {
            task.wait().await;
            close(&channel).await;
            drop(consumer);
        }
    }
}

impl Deref for OwnChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for OwnChannel {
    fn drop(&mut self) {
        let closed = self.close();
        self.tasks.spawn_on(closed, &self.runtime);
    }
}
