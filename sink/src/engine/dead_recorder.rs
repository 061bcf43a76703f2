//! Dead messages: recorded in the ledger for people, and logged.

use gristmill_ledger::{Changes, DeadMessage};
use gristmill_shared::{LogLimiter, Message, metrics::SINK_DEAD, wire::now_ms};

/// Dead messages on their way into the ledger.
#[derive(Debug, Default)]
pub(super) struct DeadRecorder {
    /// Messages since the last commit.
    staged: Vec<DeadMessage>,
    /// Keyed by origin and message type.
    log_limiter: LogLimiter<(Option<String>, String)>,
}

impl DeadRecorder {
    /// Records a message and the reason why it is dead.
    pub(super) fn record(&mut self, message: &Message, decode_error: String) {
        let reason = message.headers.reason.clone().unwrap_or(decode_error);
        let origin = message.headers.origin.as_deref();
        if self.log_limiter.should_log((message.headers.origin.clone(), message.form.clone())) {
            let (id, form, bytes) = (&message.id, &message.form, message.body.len());
            tracing::warn!(origin, id, form, bytes, reason, "recorded a dead message");
        }
        SINK_DEAD.add([], 1);
        self.staged.push(DeadMessage { received_ms: now_ms(), reason, message: message.clone() });
    }

    /// True if there is something to save.
    pub(super) fn has_changed(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Moves the messages into a commit.
    pub(super) fn stage(&mut self, changes: &mut Changes<'_>) {
        changes.dead.append(&mut self.staged);
    }
}
