//! A shared, one-shot termination signal with its reason.

use std::sync::{Arc, OnceLock};

use gristmill_shared::TransportError;
use tokio_util::sync::CancellationToken;

/// The end of a generation, or of all of them, which comes once. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Termination {
    transport: Arc<str>,
    reason: Arc<OnceLock<String>>,
    token: CancellationToken,
}

impl Termination {
    pub(crate) fn new(transport: &str) -> Self {
        Self { transport: transport.into(), reason: Arc::default(), token: CancellationToken::new() }
    }

    pub(crate) fn transport(&self) -> &str {
        &self.transport
    }

    /// Terminates. The first reason stays.
    pub(crate) fn terminate(&self, reason: impl Into<String>) {
        let _ = self.reason.set(reason.into()); // it fails if there is one already
        self.token.cancel();
    }

    /// Waits for the termination.
    pub(crate) async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Returns a token that is cancelled by the termination, and can be cancelled before by itself.
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// Fails after the termination.
    ///
    /// # Errors
    /// [`TransportError::Disconnected`], with the reason.
    pub(crate) fn check(&self) -> Result<(), TransportError> {
        if self.is_terminated() { Err(self.error()) } else { Ok(()) }
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) fn reason(&self) -> &str {
        self.reason.get().map_or("the connection is closed", String::as_str)
    }

    pub(crate) fn error(&self) -> TransportError {
        self.disconnect_error(self.reason())
    }

    pub(crate) fn disconnect_error(&self, reason: &str) -> TransportError {
        TransportError::Disconnected { transport: self.transport.to_string(), reason: reason.into() }
    }
}
