//! A short-lived connection for declarations: an error closes it and no other.
//!
//! A broker that several processes ask for the same queues at once may answer with an internal
//! error, which closes the whole connection: RabbitMQ 3.10 knows a new stream by name some time
//! before it can be read.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gristmill_shared::TransportError;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use crate::{
    config::AmqpConfig,
    connection::{Generation, REPLY_TIMEOUT},
    failure::{self, Operation},
};

/// A connection with one channel at a time.
#[derive(Debug)]
pub(crate) struct DeclareSession {
    connection: Connection,
    channel: Channel,
    transport: String,
    may_declare: Arc<AtomicBool>,
    /// True if a missing permission to declare is an error.
    pub(crate) must_declare: bool,
}

impl DeclareSession {
    /// Opens the connection. `may_declare` outlives the session, and is false once the broker has
    /// refused a declaration.
    pub(crate) async fn open(
        generation: &Generation,
        config: &AmqpConfig,
        may_declare: &Arc<AtomicBool>,
    ) -> Result<Self, TransportError> {
        let transport = config.to_string();
        let connecting = generation.open_extra_connection(config, "declare");
        let connection = await_reply(&transport, Operation::Unrestricted, "a connection", connecting).await?;
        let channel =
            await_reply(&transport, Operation::Unrestricted, "a channel", connection.create_channel())
                .await?;
        let (may_declare, must_declare) = (Arc::clone(may_declare), config.must_declare);
        Ok(Self { connection, channel, transport, may_declare, must_declare })
    }

    /// Returns the channel, or a new one if the last request closed it: refusals do, and lookups of
    /// missing entities.
    pub(crate) async fn channel(&mut self) -> Result<Channel, TransportError> {
        if !self.channel.status().connected() {
            let channel = await_reply(
                &self.transport,
                Operation::Unrestricted,
                "a channel",
                self.connection.create_channel(),
            );
            self.channel = channel.await?;
        }
        Ok(self.channel.clone())
    }

    /// Waits for a reply, for a limited time. `Disconnected` means that another session may
    /// succeed.
    pub(crate) async fn request<T>(
        &self,
        operation: Operation,
        what: &str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, TransportError> {
        await_reply(&self.transport, operation, what, call).await
    }

    /// Returns false once the broker has refused a declaration.
    pub(crate) fn may_declare(&self) -> bool {
        self.may_declare.load(Ordering::Relaxed)
    }

    /// Records a refusal. Each attempt is a line in the broker's log, so entities are only looked
    /// up from now on.
    pub(crate) fn disable_declare(&self) {
        self.may_declare.store(false, Ordering::Relaxed);
    }

    /// Returns the broker's name, for errors.
    pub(crate) fn transport(&self) -> String {
        self.transport.clone()
    }

    pub(crate) async fn close(self) {
        // It fails if the connection is gone already, which is fine.
        let _ = timeout(REPLY_TIMEOUT, self.connection.close(200, "declared".into())).await;
    }
}

async fn await_reply<T>(
    transport: &str,
    operation: Operation,
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, TransportError> {
    let lost = |reason| TransportError::Disconnected { transport: transport.into(), reason };
    match timeout(REPLY_TIMEOUT, call).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(failure::as_access_error(transport, operation, &error)
            .unwrap_or_else(|| lost(format!("{what}: {}", failure::reason(&error))))),
        Err(_) => Err(lost(format!("no answer to {what} within {} s", REPLY_TIMEOUT.as_secs()))),
    }
}
