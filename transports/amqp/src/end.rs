//! Why and when a generation is over, for all who live by it.

use std::sync::{Arc, OnceLock};

use gristmill_shared::TransportError;
use tokio_util::sync::CancellationToken;

/// The end of a generation, which comes once. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct End {
    transport: Arc<str>,
    reason: Arc<OnceLock<String>>,
    token: CancellationToken,
}

impl End {
    pub(crate) fn new(transport: &str) -> Self {
        Self { transport: transport.into(), reason: Arc::default(), token: CancellationToken::new() }
    }

    pub(crate) fn transport(&self) -> &str {
        &self.transport
    }

    /// Ends the generation. The first reason stays.
    pub(crate) fn because(&self, reason: impl Into<String>) {
        let _ = self.reason.set(reason.into()); // it fails if there is one already, which stays
        self.token.cancel();
    }

    /// Waits for the end.
    pub(crate) async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Cancelled at the end, or before by itself.
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// # Errors
    /// If the end has come.
    pub(crate) fn check(&self) -> Result<(), TransportError> {
        if self.token.is_cancelled() { Err(self.error()) } else { Ok(()) }
    }

    pub(crate) fn error(&self) -> TransportError {
        self.disconnected(self.reason.get().map_or("the connection is closed", String::as_str))
    }

    pub(crate) fn disconnected(&self, reason: &str) -> TransportError {
        TransportError::Disconnected { transport: self.transport.to_string(), reason: reason.into() }
    }
}
