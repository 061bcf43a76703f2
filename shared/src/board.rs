//! What a process knows from the journal: which jobs nobody needs any more.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    JobId, JournalEntry, JournalReader, Round, StopSignal, Transport, TransportError,
    wire::{Fact, Finished, Stopped},
};

/// How many jobs a board remembers; the oldest are forgotten first. A job forgotten while its tasks are still queued
/// is run to its end, which the sink ignores.
pub const BOARD_MAX_JOBS: usize = 100_000;

/// Follows the journal and tells the parts of a process when a job's round has ended.
#[derive(Debug, Default)]
pub struct JobBoard {
    jobs: Mutex<BTreeMap<JobId, Rounds>>,
}

#[derive(Debug, Default)]
struct Rounds {
    /// This round and all before have ended.
    ended: Option<Round>,
    /// Signals somebody asked for.
    signals: BTreeMap<Round, StopSignal>,
}

impl JobBoard {
    /// Reads the journal up to its present end. The future that comes with the board follows it from there and must
    /// be run; it ends only with an error.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn open(
        transport: &dyn Transport,
    ) -> Result<(Arc<Self>, impl Future<Output = TransportError> + Send + 'static), TransportError> {
        let board = Arc::new(Self::default());
        let mut journal = transport.journal().await?;
        while let JournalEntry::Fact(message) = journal.next().await? {
            board.learn(&message);
        }
        let following = Arc::clone(&board);
        Ok((board, async move { following.follow(&mut *journal).await }))
    }

    async fn follow(&self, journal: &mut dyn JournalReader) -> TransportError {
        loop {
            match journal.next().await {
                Ok(JournalEntry::Fact(message)) => self.learn(&message),
                Ok(JournalEntry::CaughtUp) => {}
                Err(error) => return error,
            }
        }
    }

    fn learn(&self, message: &crate::Message) {
        match Fact::decode(message) {
            Ok(Fact::Stopped(Stopped { job, round, .. }) | Fact::Finished(Finished { job, round, .. })) => {
                self.end(job, round);
            }
            Ok(Fact::Opened(_) | Fact::Reopened(_) | Fact::Missing(_) | Fact::Serving(_)) => {}
            // Of a later version, for days: whoever starts meets it again, and can do nothing about it.
            Err(error) => tracing::debug!(id = message.id, %error, "passing over an entry of the journal"),
        }
    }

    fn end(&self, job: JobId, round: Round) {
        self.with(job, |rounds| {
            rounds.ended = rounds.ended.max(Some(round));
            for (_, signal) in rounds.signals.range(..=round) {
                signal.stop();
            }
            rounds.signals.retain(|of, _| *of > round);
        });
    }

    /// The signal that tells when `round` of `job` ends; given already if it has.
    #[must_use]
    pub fn stop_signal(&self, job: JobId, round: Round) -> StopSignal {
        self.with(job, |rounds| {
            if rounds.ended.is_some_and(|ended| round <= ended) {
                let signal = StopSignal::new();
                signal.stop();
                return signal;
            }
            rounds.signals.entry(round).or_default().clone()
        })
    }

    fn with<T>(&self, job: JobId, look: impl FnOnce(&mut Rounds) -> T) -> T {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = look(jobs.entry(job).or_default());
        while jobs.len() > BOARD_MAX_JOBS {
            jobs.pop_first();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_round_stops_itself_and_those_before_but_none_after() {
        let (board, job) = (JobBoard::default(), JobId::generate());
        let signals: Vec<_> = (0..3).map(|round| board.stop_signal(job, Round(round))).collect();
        board.end(job, Round(1));
        assert_eq!(signals.iter().map(StopSignal::is_stopped).collect::<Vec<_>>(), [true, true, false]);
        assert!(board.stop_signal(job, Round(0)).is_stopped());
        assert!(!board.stop_signal(job, Round(2)).is_stopped());
        assert!(!board.stop_signal(JobId::generate(), Round(0)).is_stopped());
    }
}
