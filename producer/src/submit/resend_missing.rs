//! Sending tasks again that have no outcome, because the broker lost them, say.

use std::{future::pending, ops::Range, sync::Arc, time::Duration};

use gristmill_shared::{
    JournalEntry, JournalReader, TaskIndex,
    wire::{Audit, Fact, Missing},
};
use tokio::time::timeout;

use super::send::Sent;
use crate::{
    ProducerError, Submission,
    splitter::{self, Part},
};

/// How long the sink may take to say what is missing. It answers within a second, unless results wait before the
/// question.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How often the sink is asked for more ranges; each answer has a thousand. What is left then is for the next time.
const ANSWERS_MAX: u32 = 100;

/// What [`Submission::send_missing`] came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MissingReport {
    /// How many tasks were sent again, and are stored on the broker.
    pub sent: u64,
    /// How many are missing beyond those: the job was stopped, or there were too many ranges.
    pub left: u64,
}

impl Submission {
    /// Asks the sink which tasks have no outcome, and sends those of them again that were sent before. What is not lost
    /// is then run twice, and counts once.
    ///
    /// Dropping the future is harmless; what was sent by then is sent.
    ///
    /// # Errors
    /// [`ProducerError::NoAnswer`] if no sink answers within a minute; [`ProducerError::Changed`] if the split gives other
    /// tasks than those that were sent, before anything is sent. Otherwise if the broker goes.
    pub async fn send_missing(&mut self) -> Result<MissingReport, ProducerError> {
        // A broker that lost tasks may have lost the seal too; without it the sink may not know how many tasks there are.
        if let Some(sealed) = self.cursor().sealed.clone() {
            self.tell_sink(&sealed, "sealed").await?;
        }
        let mut journal = self.producer.transport.journal().await?;
        while !matches!(journal.next().await?, JournalEntry::CaughtUp) {}
        let known = self.cursor().confirmed;
        let (mut report, mut from) = (MissingReport::default(), TaskIndex(0));
        for answer in 0..ANSWERS_MAX {
            let missing = self.audit(&mut *journal, from, answer).await?;
            let ranges = below(&missing, known);
            let listed: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            if answer == 0 && listed > 0 {
                self.refuse_other_version(&missing)?;
                self.refuse_if_changed().await?;
            }
            report.left = 0;
            if let Some(last) = ranges.last() {
                from = TaskIndex(last.end);
                let sent = match self.send_part(Part::Ranges(ranges), missing.round, pending()).await {
                    Ok(Sent::All(..)) => listed,
                    Ok(Sent::Stopped(sent) | Sent::Interrupted(sent)) => sent,
                    // The split did not fail before: the job is as it was, and is not ended for that.
                    Err(ProducerError::Split(error)) => {
                        return Err(ProducerError::Changed(error.to_string()));
                    }
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
                report.left = 0; // the rest was never sent
                return Ok(report);
            }
        }
        Ok(report)
    }

    /// What is missing from `from` on: the answer to a question that is asked now.
    async fn audit(
        &self,
        journal: &mut dyn JournalReader,
        from: TaskIndex,
        number: u32,
    ) -> Result<Missing, ProducerError> {
        let part = format!("audit/{}#{number}", self.producer.app);
        self.tell_sink(&Audit { job: self.id(), from }, &part).await?;
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
        let no_answer = |_| ProducerError::NoAnswer { lane: self.cursor().lane.clone(), waited: ANSWER_MAX };
        timeout(ANSWER_MAX, answer).await.map_err(no_answer)?
    }

    fn refuse_other_version(&self, missing: &Missing) -> Result<(), ProducerError> {
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

    pub(crate) async fn refuse_if_changed(&self) -> Result<(), ProducerError> {
        let (job, place) = (Arc::clone(&self.job), self.kept.place());
        let checked = tokio::task::spawn_blocking(move || splitter::is_unchanged(&*job, place)).await;
        match checked.map_err(|_| ProducerError::Died)? {
            Ok(true) => Ok(()),
            Ok(false) => Err(ProducerError::split_changed(self.cursor().confirmed)),
            Err(error) => Err(ProducerError::Changed(error.to_string())),
        }
    }
}

/// The ranges, as far as they lie below `known`.
fn below(missing: &Missing, known: TaskIndex) -> Vec<Range<u64>> {
    let ranges =
        missing.ranges.iter().map(|(first, count)| first.0..first.0.saturating_add(*count).min(known.0));
    ranges.filter(|range| !range.is_empty()).collect()
}
