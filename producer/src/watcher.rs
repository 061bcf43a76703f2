//! Following a job from outside: events for the bar, the journal for the answer.

use std::{future::pending, sync::Arc};

use gristmill_shared::{
    EventFilter, EventReader, Job, JobId, JournalEntry, JournalReader, Message, NoReport, Outcome, Round,
    Transport, TransportError,
    wire::{Event, Fact, Finished, Missing, Opened, Progress},
};
use tokio::sync::mpsc;

/// News of one job.
#[derive(Debug, Clone)]
pub enum News {
    /// The sink knows the job.
    Opened(Box<Opened>),
    /// It moved. Best effort; nothing depends on it.
    Progress(Progress),
    /// A round is under way in which failed tasks are sent again.
    Reopened(Round),
    /// It stalls, or stalled when that was written: no outcome has come for a while.
    Stalled(Missing),
    /// The journal has been read to its present end: what was not told before is not known yet.
    CaughtUp,
    /// It has ended. The last news.
    Finished(Box<Finished>),
}

/// Follows one job, from its beginning.
#[derive(Debug)]
pub struct Watch {
    job: JobId,
    journal: Journal,
    /// Nobody tells of progress if nobody asks.
    events: Option<Box<dyn EventReader>>,
    /// Whether the journal has been read to what was its end at the start.
    caught_up: bool,
    /// The last round that was begun, as far as it has been read.
    round: Round,
    /// How that round ended; told once everything has been read, since a later round may follow.
    ended: Option<Finished>,
    /// The end that was told.
    told: Option<Box<Finished>>,
}

/// A job's outcome that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The connection is gone.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The job has ended, but its report is not at hand.
    #[error(transparent)]
    Report(#[from] NoReport),
}

/// What the journal says.
#[derive(Debug)]
enum Journal {
    Own(Box<dyn JournalReader>),
    /// Of this job alone, and only what is new, from somebody who reads it anyway; if something was missed, the journal
    /// itself tells.
    Heard(mpsc::Receiver<Message>, Arc<dyn Transport>),
}

impl Journal {
    /// Cancel safe.
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        if let Self::Heard(heard, transport) = self {
            if let Some(fact) = heard.recv().await {
                return Ok(JournalEntry::Fact(fact));
            }
            *self = Self::Own(transport.journal().await?);
        }
        match self {
            Self::Own(journal) => journal.next().await,
            Self::Heard(..) => pending().await, // it has just been replaced
        }
    }
}

impl Watch {
    /// Begins to follow. Open it before the job is sent to miss no event.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn open(transport: &dyn Transport, job: JobId) -> Result<Self, TransportError> {
        let events = transport.events(EventFilter::Job(job)).await?;
        let journal = Journal::Own(transport.journal().await?);
        Ok(Self {
            job,
            journal,
            events: Some(events),
            caught_up: false,
            round: Round(0),
            ended: None,
            told: None,
        })
    }

    /// Follows a job of which nothing is in the journal yet.
    pub(crate) fn of_new(job: JobId, heard: mpsc::Receiver<Message>, transport: Arc<dyn Transport>) -> Self {
        let journal = Journal::Heard(heard, transport);
        Self { job, journal, events: None, caught_up: true, round: Round(0), ended: None, told: None }
    }

    /// Waits for the end of a round after this one, which is known to have ended.
    #[must_use]
    pub fn after(self, round: Round) -> Self {
        Self { round: Round(round.0.saturating_add(1)), ..self }
    }

    /// Whether the journal has been read to what was its end at the start.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Waits for the end and returns the job's outcome, typed. Also after the end was told. Cancel
    /// safe.
    ///
    /// # Errors
    /// [`OutcomeError::Report`] if the job has ended without a report that fits `J`.
    pub async fn outcome<J: Job>(&mut self) -> Result<Outcome<J::Report>, OutcomeError> {
        Ok(self.finished().await?.outcome::<J>()?)
    }

    /// Waits for the end and returns the job's report, typed: a partial one if tasks failed or the
    /// job was ended from outside; [`Watch::outcome`] says so. Cancel safe.
    ///
    /// # Errors
    /// The errors of [`Watch::outcome`].
    pub async fn report<J: Job>(&mut self) -> Result<J::Report, OutcomeError> {
        Ok(self.finished().await?.report::<J>()?)
    }

    /// Waits for the end, whatever comes before. Also after the end was told. Cancel safe.
    ///
    /// # Errors
    /// If the connection goes.
    pub async fn finished(&mut self) -> Result<Finished, TransportError> {
        if let Some(told) = &self.told {
            return Ok(Finished::clone(told));
        }
        loop {
            if let News::Finished(finished) = self.next().await? {
                return Ok(*finished);
            }
        }
    }

    /// The next news; after [`News::Finished`] there is none. Cancel safe.
    ///
    /// # Errors
    /// If the connection goes.
    pub async fn next(&mut self) -> Result<News, TransportError> {
        loop {
            if self.caught_up
                && let Some(finished) = self.ended.take()
            {
                let finished = Box::new(finished);
                self.told = Some(finished.clone());
                return Ok(News::Finished(finished));
            }
            tokio::select! {
                entry = self.journal.next() => match entry? {
                    JournalEntry::CaughtUp => {
                        self.caught_up = true;
                        if self.ended.is_none() {
                            return Ok(News::CaughtUp);
                        }
                    }
                    JournalEntry::Fact(message) => match Fact::decode(&message) {
                        Ok(Fact::Opened(opened)) if opened.job == self.job => {
                            return Ok(News::Opened(Box::new(opened)));
                        }
                        Ok(Fact::Finished(finished)) if finished.job == self.job => self.end(finished),
                        Ok(Fact::Reopened(reopened)) if reopened.job == self.job && self.reopen(reopened.round) => {
                            return Ok(News::Reopened(reopened.round));
                        }
                        Ok(Fact::Missing(missing)) if missing.job == self.job && missing.since_ms.is_some() => {
                            return Ok(News::Stalled(missing));
                        }
                        _ => {}
                    },
                },
                event = next_event(self.events.as_mut()) => match Event::decode(&event?) {
                    Ok(Event::Progress(progress)) => return Ok(News::Progress(progress)),
                    Ok(Event::Finished(finished)) if finished.job == self.job => self.end(finished),
                    _ => {}
                },
            }
        }
    }

    /// The last round's end counts; entries may repeat, also late.
    fn end(&mut self, finished: Finished) {
        if finished.round >= self.round {
            self.round = finished.round; // an older one may be read later
            self.ended = Some(finished);
        }
    }

    /// Whether that is the round that is under way; entries may repeat, also late.
    fn reopen(&mut self, round: Round) -> bool {
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
