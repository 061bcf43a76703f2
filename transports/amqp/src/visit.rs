//! A short connection to declare on: what goes wrong there closes that connection and no other.
//!
//! A broker that is asked for the same queues by several processes at once may answer with an internal error, which
//! closes the whole connection: RabbitMQ 3.10 knows a new stream by name some time before it can be read.

use gristmill_shared::TransportError;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use crate::{
    config::AmqpConfig,
    failure,
    generation::{ANSWER_TIMEOUT, Generation},
};

/// A connection with one channel.
#[derive(Debug)]
pub(crate) struct Visit {
    connection: Connection,
    pub(crate) channel: Channel,
    transport: String,
}

impl Visit {
    pub(crate) async fn begin(generation: &Generation, config: &AmqpConfig) -> Result<Self, TransportError> {
        let transport = config.to_string();
        let connecting = generation.connect_again(config, "declare");
        let connection = answer(&transport, "a connection", connecting).await?;
        let channel = answer(&transport, "a channel", connection.create_channel()).await?;
        Ok(Self { connection, channel, transport })
    }

    /// Waits for an answer, but not for ever. `Disconnected` means that another visit may do better.
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        question: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, TransportError> {
        answer(&self.transport, what, question).await
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
    what: &str,
    question: impl Future<Output = lapin::Result<T>>,
) -> Result<T, TransportError> {
    let lost = |reason| TransportError::Disconnected { transport: transport.into(), reason };
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure::denied(transport, &error)
            .unwrap_or_else(|| lost(format!("{what}: {}", failure::reason(&error))))),
        Err(_) => Err(lost(format!("no answer to {what} within {} s", ANSWER_TIMEOUT.as_secs()))),
    }
}
