//! Messages about unknown jobs, parked in the ledger until their job is opened.

use gristmill_ledger::{Changes, Ledger};
use gristmill_shared::{
    JobId, LogLimiter, Message,
    metrics::{SINK_PARKED, SINK_PARKED_DROPPED},
};

use crate::SinkError;

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
    pub(super) fn take_parked(
        &mut self,
        job: JobId,
        ledger: &mut dyn Ledger,
    ) -> Result<Vec<Message>, SinkError> {
        let mut messages = ledger.parked(job)?;
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

    /// Moves the changes into a commit.
    pub(super) fn stage(&mut self, changes: &mut Changes<'_>) {
        changes.unparked.append(&mut self.removed);
        changes.parked.append(&mut self.staged);
    }

    /// Counts the messages that the commit dropped, since too many were parked.
    pub(super) fn record_dropped(dropped: u64) {
        SINK_PARKED_DROPPED.add([], dropped);
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "too much is parked: the oldest messages about unknown jobs were dropped"
            );
        }
    }
}
