//! Resending of tasks that have no outcome, for example because the broker lost them.

use std::{future::pending, ops::Range, sync::Arc, time::Duration};

use gristmill_shared::{
    JobError, JournalEntry, JournalReader, TaskIndex,
    wire::{Audit, Fact, Missing},
};
use tokio::time::timeout;

use super::send::SendOutcome;
use crate::{
    ProducerError, Submission,
    splitter::{self, SplitSelection},
};

/// The longest wait for the sink's answer. It answers within a second, unless results wait before
/// the request in its queue.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The most requests to the sink in one call. Each answer has up to a thousand ranges; what is left
/// then is for the next call.
const ANSWERS_MAX: u32 = 100;

/// The result of [`Submission::send_missing`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MissingReport {
    /// The number of tasks that were sent again and are stored on the broker.
    pub sent: u64,
    /// The number of tasks that are missing beyond those: the job was stopped, or there were too
    /// many ranges.
    pub left: u64,
}

impl Submission {
    /// Asks the sink which tasks have no outcome, and sends those again that were sent before. A
    /// task that was not lost then runs twice and counts once.
    ///
    /// Cancel safe: tasks that were sent before the future is dropped stay sent.
    ///
    /// # Errors
    /// [`ProducerError::NoAnswer`] if no sink answers within a minute; [`ProducerError::Changed`]
    /// if the split yields other tasks than those that were sent, before anything is sent;
    /// otherwise if the connection is lost.
    pub async fn send_missing(&mut self) -> Result<MissingReport, ProducerError> {
        // A broker that lost tasks may have lost the seal too. Without it the sink may not know the
        // number of tasks.
        if let Some(sealed) = self.cursor().sealed.clone() {
            self.send_to_sink(&sealed, "sealed").await?;
        }
        let mut journal = self.producer.transport.journal().await?;
        while !matches!(journal.next().await?, JournalEntry::CaughtUp) {}
        let known = self.cursor().confirmed;
        let (mut report, mut from) = (MissingReport::default(), TaskIndex(0));
        for answer in 0..ANSWERS_MAX {
            let missing = self.audit(&mut *journal, from, answer).await?;
            let ranges = ranges_below(&missing, known);
            let listed: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            if answer == 0 && listed > 0 {
                self.check_version(&missing)?;
                self.check_unchanged().await?;
            }
            report.left = 0;
            if let Some(last) = ranges.last() {
                from = TaskIndex(last.end);
                let sent =
                    match self.send_selection(SplitSelection::Ranges(ranges), missing.round, pending()).await
                    {
                        Ok(SendOutcome::All(..)) => listed,
                        Ok(SendOutcome::Stopped(sent) | SendOutcome::Interrupted(sent)) => sent,
                        // The split did not fail before: the job is unchanged, and is not ended for
                        // that.
                        Err(ProducerError::Split(error)) => return Err(self.input_unavailable(error)),
                        Err(ProducerError::Changed(_)) => return Err(ProducerError::split_changed(known)),
                        Err(error) => return Err(error),
                    };
                report.sent += sent;
                report.left = missing.tasks.saturating_sub(sent);
                if sent < listed {
                    return Ok(report);
                }
            }
            let all: u64 = missing.ranges.iter().map(|(_, count)| count).sum();
            if all == missing.tasks || listed < all {
                report.left = 0; // the other tasks were never sent
                return Ok(report);
            }
        }
        Ok(report)
    }

    /// Asks the sink which tasks are missing from `from` on, and waits for the answer.
    async fn audit(
        &self,
        journal: &mut dyn JournalReader,
        from: TaskIndex,
        number: u32,
    ) -> Result<Missing, ProducerError> {
        let id_suffix = format!("audit/{}#{number}", self.producer.app);
        self.send_to_sink(&Audit { job: self.id(), from }, &id_suffix).await?;
        let answer = async {
            loop {
                if let JournalEntry::Fact(message) = journal.next().await?
                    && let Ok(Fact::Missing(missing)) = Fact::decode(&message)
                    && (missing.job, missing.from, missing.since_ms) == (self.id(), from, None)
                {
                    return Ok(missing);
                }
            }
        };
        let no_answer =
            |_| ProducerError::NoAnswer { lane: self.cursor().lane.clone(), waited: ANSWER_TIMEOUT };
        timeout(ANSWER_TIMEOUT, answer).await.map_err(no_answer)?
    }

    fn check_version(&self, missing: &Missing) -> Result<(), ProducerError> {
        let (here, wanted) = (self.job.version(), missing.version);
        if here == wanted {
            return Ok(());
        }
        Err(ProducerError::Changed(format!(
            "job {} is in a round of version {wanted} of its code, and this program has version {here} \
             (hint: resume it with the program of that version)",
            self.id()
        )))
    }

    pub(crate) async fn check_unchanged(&self) -> Result<(), ProducerError> {
        let (job, position) = (Arc::clone(&self.job), self.cursor_file.position());
        let checked = tokio::task::spawn_blocking(move || splitter::is_unchanged(&*job, position)).await;
        match checked.map_err(|_| ProducerError::ThreadDied)? {
            Ok(true) => Ok(()),
            Ok(false) => Err(ProducerError::split_changed(self.cursor().confirmed)),
            Err(error) => Err(self.input_unavailable(error)),
        }
    }

    /// Returns the error for tasks that were sent and do not split again.
    pub(crate) fn input_unavailable(&self, error: JobError) -> ProducerError {
        ProducerError::InputUnavailable { job: self.id(), error }
    }
}

/// Returns the ranges, cut off at `known`.
fn ranges_below(missing: &Missing, known: TaskIndex) -> Vec<Range<u64>> {
    let ranges =
        missing.ranges.iter().map(|(first, count)| first.0..first.0.saturating_add(*count).min(known.0));
    ranges.filter(|range| !range.is_empty()).collect()
}
