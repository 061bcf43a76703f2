//! Why and when something is over, for all who live by it.

use std::sync::{Arc, OnceLock};

use gristmill_shared::TransportError;
use tokio_util::sync::CancellationToken;

/// The end of a generation, or of all of them, which comes once. Clones share it.
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

    /// Ends it. The first reason stays.
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
        if self.is_over() { Err(self.error()) } else { Ok(()) }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) fn reason(&self) -> &str {
        self.reason.get().map_or("the connection is closed", String::as_str)
    }

    pub(crate) fn error(&self) -> TransportError {
        self.disconnected(self.reason())
    }

    pub(crate) fn disconnected(&self, reason: &str) -> TransportError {
        TransportError::Disconnected { transport: self.transport.to_string(), reason: reason.into() }
    }
}
