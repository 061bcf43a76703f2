//! A short connection to declare on: what goes wrong there closes that connection and no other.
//!
//! A broker that is asked for the same queues by several processes at once may answer with an internal error, which
//! closes the whole connection: RabbitMQ 3.10 knows a new stream by name some time before it can be read.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gristmill_shared::TransportError;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use crate::{
    config::AmqpConfig,
    failure::{self, Wish},
    connection::generation::{ANSWER_TIMEOUT, Generation},
};

/// A connection with one channel at a time.
#[derive(Debug)]
pub(crate) struct Visit {
    connection: Connection,
    channel: Channel,
    transport: String,
    declares: Arc<AtomicBool>,
    /// Whether it is an error that we may not.
    pub(crate) must_declare: bool,
}

impl Visit {
    /// `declares` is kept beyond the visit: whether we may declare, as far as we know.
    pub(crate) async fn begin(
        generation: &Generation,
        config: &AmqpConfig,
        declares: &Arc<AtomicBool>,
    ) -> Result<Self, TransportError> {
        let transport = config.to_string();
        let connecting = generation.connect_again(config, "declare");
        let connection = answer(&transport, Wish::Free, "a connection", connecting).await?;
        let channel = answer(&transport, Wish::Free, "a channel", connection.create_channel()).await?;
        let (declares, must_declare) = (Arc::clone(declares), config.must_declare);
        Ok(Self { connection, channel, transport, declares, must_declare })
    }

    /// The channel, or a new one if the last question closed it: a refusal does, and so does asking for what is not
    /// there.
    pub(crate) async fn channel(&mut self) -> Result<Channel, TransportError> {
        if !self.channel.status().connected() {
            let channel = answer(&self.transport, Wish::Free, "a channel", self.connection.create_channel());
            self.channel = channel.await?;
        }
        Ok(self.channel.clone())
    }

    /// Waits for an answer, but not for ever. `Disconnected` means that another visit may do better.
    pub(crate) async fn ask<T>(
        &self,
        wish: Wish,
        what: &str,
        question: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, TransportError> {
        answer(&self.transport, wish, what, question).await
    }

    /// Whether we may declare, as far as we know.
    pub(crate) fn declares(&self) -> bool {
        self.declares.load(Ordering::Relaxed)
    }

    /// We were refused once. Each try is a line in the broker's log, so what is there is only looked at from now on.
    pub(crate) fn declares_not(&self) {
        self.declares.store(false, Ordering::Relaxed);
    }

    /// The broker's name, for errors.
    pub(crate) fn transport(&self) -> String {
        self.transport.clone()
    }

    pub(crate) async fn end(self) {
        // It fails if the connection is gone already, which is the aim.
        let _ = timeout(ANSWER_TIMEOUT, self.connection.close(200, "declared".into())).await;
    }
}

async fn answer<T>(
    transport: &str,
    wish: Wish,
    what: &str,
    question: impl Future<Output = lapin::Result<T>>,
) -> Result<T, TransportError> {
    let lost = |reason| TransportError::Disconnected { transport: transport.into(), reason };
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure::denied(transport, wish, &error)
            .unwrap_or_else(|| lost(format!("{what}: {}", failure::reason(&error))))),
        Err(_) => Err(lost(format!("no answer to {what} within {} s", ANSWER_TIMEOUT.as_secs()))),
    }
}
