//! Watching a job: events for its progress, the journal for its end.

use std::{future::pending, sync::Arc};

use gristmill_shared::{
    EventFilter, EventReader, Job, JobId, JournalEntry, JournalReader, Message, NoReport, Outcome, Round,
    Transport, TransportError,
    wire::{Event, Fact, Finished, Missing, Opened, Progress},
};
use tokio::sync::mpsc;

/// An update on one job.
#[derive(Debug, Clone)]
pub enum JobUpdate {
    /// The sink knows the job.
    Opened(Box<Opened>),
    /// The job made progress. Best effort: no other update depends on it.
    Progress(Progress),
    /// A round has begun in which failed tasks are sent again.
    Reopened(Round),
    /// The job stalls, or stalled when this was written: no outcome arrived for a while.
    Stalled(Missing),
    /// The journal has been read to its present end: what was not reported before is not known yet.
    CaughtUp,
    /// The job has ended. The last update.
    Finished(Box<Finished>),
}

/// A watcher of one job, from its beginning.
#[derive(Debug)]
pub struct JobWatcher {
    job: JobId,
    journal: FactSource,
    /// The reader of progress events; `None` if the caller does not want them.
    events: Option<Box<dyn EventReader>>,
    /// True once the journal has been read to what was its end at the start.
    caught_up: bool,
    /// The last round that has begun, as far as the journal has been read.
    round: Round,
    /// The end of that round. It is returned once the journal has been read, since a later round
    /// may follow.
    ended: Option<Finished>,
    /// The end that was returned.
    returned: Option<Box<Finished>>,
}

/// An error while a job's outcome is awaited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The connection is lost.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The job has ended, but its report is not available.
    #[error(transparent)]
    Report(#[from] NoReport),
}

/// A source of journal entries.
#[derive(Debug)]
enum FactSource {
    Reader(Box<dyn JournalReader>),
    /// A subscription to new facts of this job alone, at a shared reader of the journal. If it
    /// missed one, the watcher reads the journal itself.
    Subscription(mpsc::Receiver<Message>, Arc<dyn Transport>),
}

impl FactSource {
    /// Waits for the next entry. Cancel safe.
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        if let Self::Subscription(facts, transport) = self {
            if let Some(fact) = facts.recv().await {
                return Ok(JournalEntry::Fact(fact));
            }
            *self = Self::Reader(transport.journal().await?);
        }
        match self {
            Self::Reader(journal) => journal.next().await,
            Self::Subscription(..) => pending().await, // unreachable: it was just replaced
        }
    }
}

impl JobWatcher {
    /// Starts to watch a job. A watcher that is opened before the job is sent misses no event.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn open(transport: &dyn Transport, job: JobId) -> Result<Self, TransportError> {
        let events = transport.events(EventFilter::Job(job)).await?;
        let journal = FactSource::Reader(transport.journal().await?);
        Ok(Self {
            job,
            journal,
            events: Some(events),
            caught_up: false,
            round: Round(0),
            ended: None,
            returned: None,
        })
    }

    /// Watches a job of which nothing is in the journal yet.
    pub(crate) fn for_new_job(
        job: JobId,
        facts: mpsc::Receiver<Message>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let journal = FactSource::Subscription(facts, transport);
        Self { job, journal, events: None, caught_up: true, round: Round(0), ended: None, returned: None }
    }

    /// Ignores this round, which is known to have ended, and waits for the end of a later one.
    #[must_use]
    pub fn after(self, round: Round) -> Self {
        Self { round: Round(round.0.saturating_add(1)), ..self }
    }

    /// Returns true once the journal has been read to what was its end at the start.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Waits for the end and returns the job's typed outcome. May be called again after the end.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`OutcomeError::Report`] if the job has ended without a report that fits `J`.
    pub async fn outcome<J: Job>(&mut self) -> Result<Outcome<J::Report>, OutcomeError> {
        Ok(self.finished().await?.outcome::<J>()?)
    }

    /// Waits for the end and returns the job's typed report. The report is partial if tasks failed
    /// or the job was cancelled, which [`JobWatcher::outcome`] reveals. Cancel safe.
    ///
    /// # Errors
    /// The errors of [`JobWatcher::outcome`].
    pub async fn report<J: Job>(&mut self) -> Result<J::Report, OutcomeError> {
        Ok(self.finished().await?.report::<J>()?)
    }

    /// Waits for the end and skips all other updates. May be called again after the end. Cancel
    /// safe.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn finished(&mut self) -> Result<Finished, TransportError> {
        if let Some(returned) = &self.returned {
            return Ok(Finished::clone(returned));
        }
        loop {
            if let JobUpdate::Finished(finished) = self.next().await? {
                return Ok(*finished);
            }
        }
    }

    /// Waits for the next update. Never returns after [`JobUpdate::Finished`]. Cancel safe.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn next(&mut self) -> Result<JobUpdate, TransportError> {
        loop {
            if self.caught_up
                && let Some(finished) = self.ended.take()
            {
                let finished = Box::new(finished);
                self.returned = Some(finished.clone());
                return Ok(JobUpdate::Finished(finished));
            }
            tokio::select! {
                entry = self.journal.next() => match entry? {
                    JournalEntry::CaughtUp => {
                        self.caught_up = true;
                        if self.ended.is_none() {
                            return Ok(JobUpdate::CaughtUp);
                        }
                    }
                    JournalEntry::Fact(message) => match Fact::decode(&message) {
                        Ok(Fact::Opened(opened)) if opened.job == self.job => {
                            return Ok(JobUpdate::Opened(Box::new(opened)));
                        }
                        Ok(Fact::Finished(finished)) if finished.job == self.job => self.record_end(finished),
                        Ok(Fact::Reopened(reopened)) if reopened.job == self.job && self.record_reopen(reopened.round) => {
                            return Ok(JobUpdate::Reopened(reopened.round));
                        }
                        Ok(Fact::Missing(missing)) if missing.job == self.job && missing.since_ms.is_some() => {
                            return Ok(JobUpdate::Stalled(missing));
                        }
                        _ => {}
                    },
                },
                event = next_event(self.events.as_mut()) => match Event::decode(&event?) {
                    Ok(Event::Progress(progress)) => return Ok(JobUpdate::Progress(progress)),
                    Ok(Event::Finished(finished)) if finished.job == self.job => self.record_end(finished),
                    _ => {}
                },
            }
        }
    }

    /// Records the end of a round if it is the latest one. Entries may repeat, also late.
    fn record_end(&mut self, finished: Finished) {
        if finished.round >= self.round {
            self.round = finished.round; // the entry of an older round may be read later
            self.ended = Some(finished);
        }
    }

    /// Returns true if this round is the one in progress. Entries may repeat, also late.
    fn record_reopen(&mut self, round: Round) -> bool {
        self.round = self.round.max(round);
        self.ended.take_if(|ended| ended.round < round);
        self.round == round && self.ended.is_none()
    }
}

async fn next_event(events: Option<&mut Box<dyn EventReader>>) -> Result<Message, TransportError> {
    match events {
        Some(events) => events.next().await,
        None => pending().await,
    }
}
