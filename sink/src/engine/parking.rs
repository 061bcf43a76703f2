//! Messages about unknown jobs, parked in the ledger until their job is opened.

use gristmill_shared::{
    JobId, LogLimiter, Message,
    metrics::{SINK_PARKED, SINK_PARKED_DROPPED},
};
use rusqlite::Transaction;

use crate::{
    SinkError,
    ledger::{Ledger, parked_rows},
};

/// Parked messages on their way into the ledger and out of it.
#[derive(Debug, Default)]
pub(super) struct Parking {
    /// Messages since the last commit.
    staged: Vec<(JobId, Message)>,
    /// Jobs whose messages the next commit deletes from the ledger.
    removed: Vec<JobId>,
    log_limiter: LogLimiter<()>,
}

impl Parking {
    /// Parks a message.
    pub(super) fn park(&mut self, job: JobId, message: &Message) {
        if self.log_limiter.should_log(()) {
            tracing::warn!(%job, form = message.form, "parked a message about a job that this ledger does not know");
        }
        SINK_PARKED.add([], 1);
        self.staged.push((job, message.clone()));
    }

    /// Takes all messages about a job, in the order of their arrival.
    pub(super) fn take_parked(&mut self, job: JobId, ledger: &Ledger) -> Result<Vec<Message>, SinkError> {
        let mut messages =
            ledger.read("parked messages are read", |connection| parked_rows::load(connection, job))?;
        if !messages.is_empty() {
            self.removed.push(job);
        }
        messages.extend(self.staged.extract_if(.., |(of, _)| *of == job).map(|(_, message)| message));
        Ok(messages)
    }

    /// True if there is something to save.
    pub(super) fn has_changed(&self) -> bool {
        !self.staged.is_empty() || !self.removed.is_empty()
    }

    /// Writes the changes, within the bounds.
    pub(super) fn save(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for job in self.removed.drain(..) {
            parked_rows::remove(transaction, job)?;
        }
        if self.staged.is_empty() {
            return Ok(());
        }
        for (job, message) in self.staged.drain(..) {
            parked_rows::insert(transaction, job, &message)?;
        }
        let dropped = parked_rows::drop_oldest(transaction)?;
        SINK_PARKED_DROPPED.add([], dropped);
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "too much is parked: the oldest messages about unknown jobs were dropped"
            );
        }
        Ok(())
    }
}
