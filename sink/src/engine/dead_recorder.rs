//! Messages that were none of ours: recorded for people, told in the log.

use gristmill_shared::{Message, meter::SINK_DEAD};
use rusqlite::Transaction;

use super::log_limiter::Seldom;
use crate::ledger::dead_rows;

/// The way of dead messages into the ledger.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    /// Since the last commit.
    staged: Vec<(String, Message)>,
    /// By where they came from, and what they said they were.
    seldom: Seldom<(Option<String>, String)>,
}

impl DeadLetters {
    /// Keeps a message and the reason why it is dead.
    pub(super) fn record(&mut self, message: &Message, why_no_batch: String) {
        let reason = message.headers.reason.clone().unwrap_or(why_no_batch);
        let origin = message.headers.origin.as_deref();
        if self.seldom.is_due((message.headers.origin.clone(), message.form.clone())) {
            let (id, form, bytes) = (&message.id, &message.form, message.body.len());
            tracing::warn!(origin, id, form, bytes, reason, "recorded a message that is none of ours");
        }
        SINK_DEAD.add([], 1);
        self.staged.push((reason, message.clone()));
    }

    /// Whether there is something to save.
    pub(super) fn has_changed(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Writes what changed, within the bounds.
    pub(super) fn save(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        if self.staged.is_empty() {
            return Ok(());
        }
        for (reason, message) in self.staged.drain(..) {
            dead_rows::insert(transaction, &reason, &message)?;
        }
        dead_rows::keep_bounds(transaction).map(drop)
    }
}
