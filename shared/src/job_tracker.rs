//! What a process knows from the journal: which jobs nobody needs any more, and which lanes have a sink.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    JobId, JournalEntry, JournalReader, Lane, Message, RefusedTasks, Round, StopSignal, Transport,
    TransportError, refusals,
    wire::{Fact, Finished, Serving, Stopped},
};

/// How many jobs a board remembers; the oldest are forgotten first. A job forgotten while its tasks are still queued
/// is run to its end, which the sink ignores.
pub const BOARD_MAX_JOBS: usize = 100_000;

/// How many lanes a board knows to be served. Those beyond count as not served, of which no more follows than a hint.
const BOARD_MAX_LANES: usize = 10_000;

/// How many facts about one job may wait for who listens to it. A job has few; whoever lags behind is told no more.
pub const FACTS_MAX_WAITING: usize = 64;

/// Follows the journal and tells the parts of a process when a job's round has ended, and what else is said of it.
#[derive(Debug, Default)]
pub struct JobBoard {
    jobs: Mutex<BTreeMap<JobId, Rounds>>,
    /// Those who listen to a job.
    ears: Mutex<BTreeMap<JobId, mpsc::Sender<Message>>>,
    /// Jobs whose producers are here, with their tasks that are to be sent again.
    refusals: Mutex<BTreeMap<JobId, Weak<refusals::Shared>>>,
    served: Mutex<BTreeSet<Lane>>,
    caught_up: CancellationToken,
    /// Counts the rounds that have ended.
    ends: watch::Sender<u64>,
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
        board.caught_up.cancel();
        let following = Arc::clone(&board);
        Ok((board, async move { following.follow(&mut *journal).await }))
    }

    /// A board that knows nothing yet. The future that comes with it reads the journal from its start and follows it; it
    /// must be run, and ends only with an error. [`JobBoard::caught_up`] tells when everything that had ended is known.
    pub fn start(
        transport: Arc<dyn Transport>,
    ) -> (Arc<Self>, impl Future<Output = TransportError> + Send + 'static) {
        let board = Arc::new(Self::default());
        let following = Arc::clone(&board);
        let follow = async move {
            match transport.journal().await {
                Ok(mut journal) => following.follow(&mut *journal).await,
                Err(error) => error,
            }
        };
        (board, follow)
    }

    /// Waits until the journal has been read to what was its end at the start. For ever if the board's future ends
    /// before. Cancel safe.
    pub async fn caught_up(&self) {
        self.caught_up.cancelled().await;
    }

    /// What the journal says of `job` from now on, in its order. One listens to a job at a time: whoever comes later
    /// takes the place of the one before.
    ///
    /// The channel closes when its place is taken, when [`FACTS_MAX_WAITING`] facts wait in it and another one comes, and
    /// when the board goes. What was missed then is in the journal.
    #[must_use]
    pub fn listen(&self, job: JobId) -> mpsc::Receiver<Message> {
        let (ear, heard) = mpsc::channel(FACTS_MAX_WAITING);
        let mut ears = self.ears();
        ears.retain(|_, ear| !ear.is_closed()); // so there are never more than listen, and those who left since
        ears.insert(job, ear);
        heard
    }

    /// Learns a fact that was told as an event, before the journal is read as far. It will come there again.
    pub fn hear(&self, fact: &Message) {
        self.learn(fact);
    }

    async fn follow(&self, journal: &mut dyn JournalReader) -> TransportError {
        loop {
            match journal.next().await {
                Ok(JournalEntry::Fact(message)) => self.learn(&message),
                Ok(JournalEntry::CaughtUp) => self.caught_up.cancel(),
                Err(error) => return error,
            }
        }
    }

    fn learn(&self, message: &Message) {
        self.tell(message);
        match Fact::decode(message) {
            Ok(Fact::Stopped(Stopped { job, round, .. }) | Fact::Finished(Finished { job, round, .. })) => {
                self.end(job, round);
            }
            Ok(Fact::Serving(Serving { lane, .. })) => {
                let mut served = self.served();
                if served.len() < BOARD_MAX_LANES {
                    served.insert(lane);
                }
            }
            Ok(Fact::Refused(refused)) => {
                let tasks = self.refusals().get(&refused.job).and_then(Weak::upgrade);
                if let Some(tasks) = tasks {
                    tasks.add(&refused);
                }
            }
            Ok(Fact::Opened(_) | Fact::Reopened(_) | Fact::Missing(_)) => {}
            // Of a later version, for days: whoever starts meets it again, and can do nothing about it.
            Err(error) => tracing::debug!(id = message.id, %error, "passing over an entry of the journal"),
        }
    }

    fn tell(&self, message: &Message) {
        let Some(job) = message.job else { return };
        let mut ears = self.ears();
        if ears.get(&job).is_some_and(|ear| ear.try_send(message.clone()).is_err()) {
            ears.remove(&job);
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
        self.ends.send_modify(|ends| *ends = ends.wrapping_add(1));
    }

    /// Changes each time after the round of a job has ended and its signals were given. No end is
    /// missed.
    #[must_use]
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
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

    /// The tasks of `job` whose outcomes a sink refuses from now on. The last caller gets them.
    #[must_use]
    pub fn refused(&self, job: JobId) -> RefusedTasks {
        let tasks = RefusedTasks::default();
        let mut refusals = self.refusals();
        refusals.retain(|_, tasks| tasks.strong_count() > 0); // so there are never more than producers here
        refusals.insert(job, Arc::downgrade(tasks.shared()));
        tasks
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<JobId, Weak<refusals::Shared>>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sink has said that it serves the lane, in what the journal still has. A sink says so when it starts, and
    /// each day; it may be gone since.
    #[must_use]
    pub fn is_served(&self, lane: &Lane) -> bool {
        self.served().contains(lane)
    }

    fn served(&self) -> MutexGuard<'_, BTreeSet<Lane>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ears(&self) -> MutexGuard<'_, BTreeMap<JobId, mpsc::Sender<Message>>> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
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
    use crate::{LedgerId, wire::Form as _};

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

    #[test]
    fn a_lane_is_served_once_a_sink_has_said_so() {
        let (board, night): (_, Lane) = (JobBoard::default(), "night".parse().unwrap());
        let serving = Serving { lane: night.clone(), ledger: LedgerId::generate(), place: "here".into() };
        board.learn(&serving.message("1".into(), "sink"));
        assert!(board.is_served(&night) && !board.is_served(&Lane::default()));
    }

    #[tokio::test]
    async fn who_listens_to_a_job_hears_of_it_alone_and_learns_that_facts_were_missed() {
        let (board, job) = (JobBoard::default(), JobId::generate());
        let fact = |job, id: usize| Message { job: Some(job), id: id.to_string(), ..Message::default() };
        let replaced = board.listen(job);
        let mut heard = board.listen(job);
        assert!(replaced.is_closed());
        board.learn(&fact(JobId::generate(), 0));
        (0..=FACTS_MAX_WAITING).for_each(|id| board.learn(&fact(job, id)));
        for id in 0..FACTS_MAX_WAITING {
            assert_eq!(heard.recv().await, Some(fact(job, id)));
        }
        assert_eq!(heard.recv().await, None, "the last one did not fit, and nothing is left out in silence");

        drop(board.listen(job));
        let _heard = board.listen(JobId::generate());
        assert_eq!(board.ears().len(), 1, "whoever left is forgotten");
    }
}
