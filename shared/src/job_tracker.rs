//! The state of jobs and lanes that a process reads from the journal: rounds that have ended, and
//! lanes that a sink serves.

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

/// The most jobs that a tracker remembers; the oldest are forgotten first. If a job is forgotten
/// while its tasks are still queued, workers run them, and the sink ignores their outcomes.
pub const TRACKER_MAX_JOBS: usize = 100_000;

/// The most served lanes that a tracker remembers. Further lanes count as not served, which only
/// affects a hint.
const TRACKER_MAX_LANES: usize = 10_000;

/// The most facts about one job that may wait in its subscription. A job has few facts; a
/// subscriber that lags behind is unsubscribed.
pub const FACTS_MAX_WAITING: usize = 64;

/// Follows the journal and notifies the parts of a process of the end of a job's round and of other
/// facts about the job.
#[derive(Debug, Default)]
pub struct JobTracker {
    jobs: Mutex<BTreeMap<JobId, JobRounds>>,
    /// The subscriber of each job.
    subscribers: Mutex<BTreeMap<JobId, mpsc::Sender<Message>>>,
    /// The tasks to be sent again, of each job whose producer runs in this process.
    refusals: Mutex<BTreeMap<JobId, Weak<refusals::RefusalQueue>>>,
    served: Mutex<BTreeSet<Lane>>,
    caught_up: CancellationToken,
    /// The number of rounds that have ended.
    ends: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct JobRounds {
    /// The last round that has ended; all earlier ones have ended too.
    ended: Option<Round>,
    /// The stop signals that were requested, by round.
    signals: BTreeMap<Round, StopSignal>,
}

impl JobTracker {
    /// Reads the journal up to its present end. Returns the tracker and a future that follows the
    /// journal from there. Callers must run the future; it ends only with an error.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn open(
        transport: &dyn Transport,
    ) -> Result<(Arc<Self>, impl Future<Output = TransportError> + Send + 'static), TransportError> {
        let tracker = Arc::new(Self::default());
        let mut journal = transport.journal().await?;
        while let JournalEntry::Fact(message) = journal.next().await? {
            tracker.apply_fact(&message);
        }
        tracker.caught_up.cancel();
        let follower = Arc::clone(&tracker);
        Ok((tracker, async move { follower.follow(&mut *journal).await }))
    }

    /// Returns an empty tracker and a future that reads the journal from its start and follows it.
    /// Callers must run the future; it ends only with an error. [`JobTracker::wait_caught_up`]
    /// waits until every round that had ended at the start is known.
    pub fn start(
        transport: Arc<dyn Transport>,
    ) -> (Arc<Self>, impl Future<Output = TransportError> + Send + 'static) {
        let tracker = Arc::new(Self::default());
        let follower = Arc::clone(&tracker);
        let follow = async move {
            match transport.journal().await {
                Ok(mut journal) => follower.follow(&mut *journal).await,
                Err(error) => error,
            }
        };
        (tracker, follow)
    }

    /// Waits until the journal has been read up to the end that it had at the start. Waits forever
    /// if the tracker's future ends earlier. Cancel safe.
    pub async fn wait_caught_up(&self) {
        self.caught_up.cancelled().await;
    }

    /// Subscribes to the facts about `job` from now on, in the order of the journal. A job has one
    /// subscriber: a later call replaces the earlier subscriber.
    ///
    /// The channel closes when the subscriber is replaced, when a fact arrives while
    /// [`FACTS_MAX_WAITING`] wait in it, and when the tracker is dropped. Missed facts are in the
    /// journal.
    #[must_use]
    pub fn subscribe(&self, job: JobId) -> mpsc::Receiver<Message> {
        let (subscriber, facts) = mpsc::channel(FACTS_MAX_WAITING);
        let mut subscribers = self.subscribers();
        subscribers.retain(|_, subscriber| !subscriber.is_closed()); // bounds the map
        subscribers.insert(job, subscriber);
        facts
    }

    /// Applies a fact that arrived as an event, before the journal is read up to it. The journal
    /// delivers it again.
    pub fn apply_event(&self, fact: &Message) {
        self.apply_fact(fact);
    }

    async fn follow(&self, journal: &mut dyn JournalReader) -> TransportError {
        loop {
            match journal.next().await {
                Ok(JournalEntry::Fact(message)) => self.apply_fact(&message),
                Ok(JournalEntry::CaughtUp) => self.caught_up.cancel(),
                Err(error) => return error,
            }
        }
    }

    fn apply_fact(&self, message: &Message) {
        self.notify_subscriber(message);
        match Fact::decode(message) {
            Ok(Fact::Stopped(Stopped { job, round, .. }) | Fact::Finished(Finished { job, round, .. })) => {
                self.end_round(job, round);
            }
            Ok(Fact::Serving(Serving { lane, .. })) => {
                let mut served = self.served();
                if served.len() < TRACKER_MAX_LANES {
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
            // A later version wrote it, and the journal keeps it for days: every start reads it
            // again.
            Err(error) => tracing::debug!(id = message.id, %error, "skipping an undecodable journal entry"),
        }
    }

    fn notify_subscriber(&self, message: &Message) {
        let Some(job) = message.job else { return };
        let mut subscribers = self.subscribers();
        if subscribers.get(&job).is_some_and(|subscriber| subscriber.try_send(message.clone()).is_err()) {
            subscribers.remove(&job);
        }
    }

    fn end_round(&self, job: JobId, round: Round) {
        self.with_rounds(job, |rounds| {
            rounds.ended = rounds.ended.max(Some(round));
            for (_, signal) in rounds.signals.range(..=round) {
                signal.stop();
            }
            rounds.signals.retain(|of, _| *of > round);
        });
        self.ends.send_modify(|ends| *ends = ends.wrapping_add(1));
    }

    /// Returns a channel that changes each time a round of a job has ended, after its stop signals
    /// were given. No end is missed.
    #[must_use]
    pub fn subscribe_ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
    }

    /// Returns the signal that is given when `round` of `job` ends; it is given already if the
    /// round has ended.
    #[must_use]
    pub fn stop_signal(&self, job: JobId, round: Round) -> StopSignal {
        self.with_rounds(job, |rounds| {
            if rounds.ended.is_some_and(|ended| round <= ended) {
                let signal = StopSignal::new();
                signal.stop();
                return signal;
            }
            rounds.signals.entry(round).or_default().clone()
        })
    }

    /// Returns the tasks of `job` whose outcomes a sink refuses from now on. A later call replaces
    /// the earlier one.
    #[must_use]
    pub fn refused_tasks(&self, job: JobId) -> RefusedTasks {
        let tasks = RefusedTasks::default();
        let mut refusals = self.refusals();
        refusals.retain(|_, tasks| tasks.strong_count() > 0); // at most one entry per producer here
        refusals.insert(job, Arc::downgrade(tasks.queue()));
        tasks
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<JobId, Weak<refusals::RefusalQueue>>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the journal, as far as it is kept, says that a sink serves the lane. A sink
    /// announces this when it starts and once a day; it may have stopped since.
    #[must_use]
    pub fn is_served(&self, lane: &Lane) -> bool {
        self.served().contains(lane)
    }

    fn served(&self) -> MutexGuard<'_, BTreeSet<Lane>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribers(&self) -> MutexGuard<'_, BTreeMap<JobId, mpsc::Sender<Message>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_rounds<T>(&self, job: JobId, access: impl FnOnce(&mut JobRounds) -> T) -> T {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = access(jobs.entry(job).or_default());
        while jobs.len() > TRACKER_MAX_JOBS {
            jobs.pop_first();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LedgerId, wire::WireMessage as _};

    /// The end of a round stops that round and all earlier ones, but none of the later ones.
    #[test]
    fn round_end_stops_earlier_rounds() {
        let (tracker, job) = (JobTracker::default(), JobId::generate());
        let signals: Vec<_> = (0..3).map(|round| tracker.stop_signal(job, Round(round))).collect();
        tracker.end_round(job, Round(1));
        assert_eq!(signals.iter().map(StopSignal::is_stopped).collect::<Vec<_>>(), [true, true, false]);
        assert!(tracker.stop_signal(job, Round(0)).is_stopped());
        assert!(!tracker.stop_signal(job, Round(2)).is_stopped());
        assert!(!tracker.stop_signal(JobId::generate(), Round(0)).is_stopped());
    }

    #[test]
    fn sink_fact_marks_lane_served() {
        let (tracker, night): (_, Lane) = (JobTracker::default(), "night".parse().unwrap());
        let serving = Serving { lane: night.clone(), ledger: LedgerId::generate(), place: "here".into() };
        tracker.apply_fact(&serving.message("1".into(), "sink"));
        assert!(tracker.is_served(&night) && !tracker.is_served(&Lane::default()));
    }

    /// A subscriber gets the facts of its own job only, and its channel closes if facts were
    /// missed.
    #[tokio::test]
    async fn subscriber_sees_own_job_and_overflow() {
        let (tracker, job) = (JobTracker::default(), JobId::generate());
        let fact = |job, id: usize| Message { job: Some(job), id: id.to_string(), ..Message::default() };
        let replaced = tracker.subscribe(job);
        let mut facts = tracker.subscribe(job);
        assert!(replaced.is_closed());
        tracker.apply_fact(&fact(JobId::generate(), 0));
        (0..=FACTS_MAX_WAITING).for_each(|id| tracker.apply_fact(&fact(job, id)));
        for id in 0..FACTS_MAX_WAITING {
            assert_eq!(facts.recv().await, Some(fact(job, id)));
        }
        assert_eq!(facts.recv().await, None, "the last fact did not fit, so the channel is closed");

        drop(tracker.subscribe(job));
        let _facts = tracker.subscribe(JobId::generate());
        assert_eq!(tracker.subscribers().len(), 1, "a dropped subscriber is removed");
    }
}
