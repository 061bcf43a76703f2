//! Channels that are closed in an order that lapin tolerates.

use std::{future::Future, ops::Deref, time::Duration};

use futures::StreamExt;
use lapin::{Channel, ConnectionStatus, Consumer, message::Delivery};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Time limit for one reply of the broker.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Closes a channel. The broker confirms this only after it has handled everything sent before.
pub(crate) async fn close_channel(channel: &Channel) {
    // It fails if the channel or the connection is gone already, which is fine.
    let _ = timeout(REPLY_TIMEOUT, channel.close(200, "closed".into())).await;
}

/// A channel, with its consumer and its task if there are any. Dropping it ends the task, closes
/// the channel and drops the consumer, in this order and in the background.
///
/// lapin also closes dropped channels, but it checks the state first and acts later; if the channel
/// was closed in between, it ends the whole connection. A channel that was closed explicitly is
/// left alone.
#[derive(Debug)]
pub(crate) struct OwnedChannel {
    channel: Channel,
    connection: ConnectionStatus,
    consumer: Option<Consumer>,
    /// The task that writes to the channel, and the token that stops it.
    task: TaskTracker,
    shutdown: CancellationToken,
    /// Tasks that the generation waits for before its connections close.
    tasks: TaskTracker,
    runtime: Handle,
}

impl OwnedChannel {
    pub(crate) fn new(
        channel: Channel,
        connection: ConnectionStatus,
        shutdown: CancellationToken,
        tasks: TaskTracker,
        runtime: Handle,
    ) -> Self {
        Self { channel, connection, consumer: None, task: TaskTracker::new(), shutdown, tasks, runtime }
    }

    pub(crate) fn set_consumer(&mut self, consumer: Consumer) {
        self.consumer = Some(consumer);
    }

    /// Returns the consumer's next delivery, or `None` without a consumer. Cancel safe.
    pub(crate) async fn next_delivery(&mut self) -> Option<lapin::Result<Delivery>> {
        self.consumer.as_mut()?.next().await
    }

    /// Waits until the generation is terminated.
    pub(crate) async fn wait_terminated(&self) {
        self.shutdown.cancelled().await;
    }

    /// True if the channel can still be used.
    pub(crate) fn is_open(&self) -> bool {
        !self.shutdown.is_cancelled() && self.channel.status().connected()
    }

    /// True if the broker currently reads nothing from the channel's connection.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.blocked()
    }

    /// Runs the task that writes to the channel. It must end when the token is cancelled.
    pub(crate) fn spawn<F>(&self, task: impl FnOnce(Channel, CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = task(self.channel.clone(), self.shutdown.clone());
        self.task.spawn_on(self.tasks.track_future(task), &self.runtime);
    }

    /// Does what dropping does. The returned future waits for it.
    pub(crate) fn close(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown.cancel();
        self.task.close();
        let (task, channel, consumer) = (self.task.clone(), self.channel.clone(), self.consumer.take());
        async move {
            task.wait().await;
            close_channel(&channel).await;
            drop(consumer);
        }
    }
}

impl Deref for OwnedChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for OwnedChannel {
    fn drop(&mut self) {
        let closed = self.close();
        self.tasks.spawn_on(closed, &self.runtime);
    }
}
