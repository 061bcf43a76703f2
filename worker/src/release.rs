//! Batches that this worker may not or cannot run: left to other workers, at no cost.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use gristmill_shared::{Backoff, Headers, Kind, QueueRole, RetryDelay, WorkerId};
use tokio::{sync::watch, time::Instant};

/// Releases of a batch to the queue at once; another worker probably takes it there.
const RELEASES_AT_ONCE: u32 = 3;
/// Delay of each release after that.
const RELEASE_DELAY: RetryDelay = RetryDelay::Second;
/// Workers that must have refused a task that does not decode before it fails.
const UNDECODABLE_MIN_WORKERS: usize = 3;
/// Time that must have passed since the first of them, so that a fitting worker can start.
const UNDECODABLE_MIN_TIME: Duration = Duration::from_secs(60);
/// Releases in a row after which a worker takes no batch for a while.
const PAUSE_AFTER_RELEASES: u32 = 16;
/// Releases in a row after a pause that begin the next one.
const PAUSE_AGAIN_AFTER_RELEASES: u32 = 4;
/// The first pause. Each is twice as long as the one before, until a batch is run.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The reason why a batch is left to other workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// This worker knows no job of its kind.
    UnknownKind {
        /// The kinds that are.
        known: Vec<String>,
    },
    /// The kind is registered here in another version.
    Version {
        /// The version here.
        here: u32,
        /// The version of the batch.
        wanted: u32,
    },
    /// The submitter wants its own build.
    Build,
    /// The spec does not decode, and another build made it.
    Spec(String),
    /// Tasks do not decode, and another build made them.
    Tasks(String),
    /// The job's state failed to open here a moment ago, for this reason.
    Unprepared(String),
}

impl Unfit {
    /// Returns true if the body does not decode, so that it may be malformed.
    fn is_undecodable(&self) -> bool {
        matches!(self, Self::Spec(_) | Self::Tasks(_))
    }

    /// Returns the text for the log, which has it once for each job.
    pub(crate) fn text(&self, kind: &Kind) -> String {
        match self {
            Self::UnknownKind { known } => format!(
                "no job of kind {kind} is registered here (registered: {}); its tasks are left to other workers \
                 (hint: start a worker of the program that submitted it)",
                known.join(", ")
            ),
            Self::Version { here, wanted } => format!(
                "this worker has version {here} of the kind {kind}, and the job has version {wanted}; its tasks are \
                 left to other workers (hint: start this worker from the build that submitted the job)"
            ),
            Self::Build => format!(
                "the job of kind {kind} is for the build that submitted it (--same-build), and this worker is of \
                 another one; its tasks are left to other workers (hint: start this worker from that build)"
            ),
            Self::Unprepared(why) => format!(
                "{why}; until this worker tries that again, its batches of kind {kind} are left to other workers"
            ),
            Self::Spec(why) | Self::Tasks(why) => format!(
                "{why}; the job was submitted by another build, so this is left to other workers (hint: was a type \
                 of the kind {kind} changed without a new Job::VERSION?)"
            ),
        }
    }
}

/// The decision on a batch that is unfit for this worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Publish it to this queue, with these headers.
    Requeue(QueueRole, Headers),
    /// Fail it: enough workers could not decode it.
    Fail,
}

/// Decides on a batch from the queue `from` whose message had these headers. `now_ms` is the time
/// since 1970.
pub(crate) fn release(
    unfit: &Unfit,
    from: QueueRole,
    headers: &Headers,
    worker: &WorkerId,
    now_ms: u64,
) -> Release {
    let mut headers = headers.clone();
    if unfit.is_undecodable() {
        let mut refusals = Refusals::parse(headers.undecodable.as_deref(), now_ms);
        refusals.add(worker);
        if refusals.is_complete(now_ms) {
            return Release::Fail;
        }
        headers.undecodable = Some(refusals.to_string());
    }
    headers.released = headers.released.saturating_add(1);
    let to = match (headers.released, from) {
        // This worker may be the only one, and cannot run it before the delay has passed.
        _ if matches!(unfit, Unfit::Unprepared(_)) => QueueRole::Retry(RELEASE_DELAY),
        (1..=RELEASES_AT_ONCE, QueueRole::Suspect) => QueueRole::Suspect,
        (1..=RELEASES_AT_ONCE, _) => QueueRole::Requeued,
        _ => QueueRole::Retry(RELEASE_DELAY),
    };
    Release::Requeue(to, headers)
}

/// The header `gm-undecodable`: the workers that could not decode a batch, and the time of the
/// first.
#[derive(Debug, PartialEq, Eq)]
struct Refusals {
    since_ms: u64,
    workers: Vec<String>,
}

impl Refusals {
    /// Reads the header of earlier workers: none if it is absent or malformed.
    fn parse(header: Option<&str>, now_ms: u64) -> Self {
        let mut words = header.unwrap_or_default().split(' ');
        let since_ms = words.next().and_then(|word| word.parse().ok());
        let workers = words.take(UNDECODABLE_MIN_WORKERS).map(Into::into).collect();
        since_ms.map_or(Self { since_ms: now_ms, workers: Vec::new() }, |since_ms| Self { since_ms, workers })
    }

    fn add(&mut self, worker: &WorkerId) {
        if self.workers.len() < UNDECODABLE_MIN_WORKERS
            && !self.workers.iter().any(|id| id == worker.as_str())
        {
            self.workers.push(worker.to_string());
        }
    }

    fn is_complete(&self, now_ms: u64) -> bool {
        let waited = Duration::from_millis(now_ms.saturating_sub(self.since_ms));
        self.workers.len() >= UNDECODABLE_MIN_WORKERS && waited >= UNDECODABLE_MIN_TIME
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.since_ms)?;
        self.workers.iter().try_for_each(|worker| write!(f, " {worker}"))
    }
}

/// Decides when a worker that can run none of its deliveries takes no more for a while.
#[derive(Debug)]
pub(crate) struct ReleaseTracker {
    /// Batches released since the last one that was run.
    in_a_row: AtomicU32,
    /// The pauses until a batch is run.
    backoff: Mutex<Backoff>,
    paused_until: watch::Sender<Option<Instant>>,
}

impl Default for ReleaseTracker {
    fn default() -> Self {
        let backoff = Mutex::new(Backoff::exact(PAUSE_MIN, PAUSE_MAX));
        Self { in_a_row: AtomicU32::new(0), backoff, paused_until: watch::Sender::new(None) }
    }
}

impl ReleaseTracker {
    /// Counts a batch that is run.
    pub(crate) fn record_run(&self) {
        if self.in_a_row.load(Ordering::Relaxed) > 0 {
            let mut backoff = self.backoff();
            self.in_a_row.store(0, Ordering::Relaxed);
            backoff.reset();
        }
    }

    /// Counts a batch that was released. Begins a pause if there were many in a row.
    pub(crate) fn record_release(&self, now: Instant) {
        let mut backoff = self.backoff();
        if self.paused_until.borrow().is_some_and(|until| now < until) {
            return; // taken before the pause
        }
        if self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 < PAUSE_AFTER_RELEASES {
            return;
        }
        self.in_a_row.store(PAUSE_AFTER_RELEASES - PAUSE_AGAIN_AFTER_RELEASES, Ordering::Relaxed);
        let pause = backoff.next_pause();
        tracing::info!(?pause, "the last batches were all for other workers; taking none for a while");
        self.paused_until.send_replace(Some(now + pause));
    }

    /// Returns a receiver that changes when a pause begins, to the end of that pause.
    pub(crate) fn pauses(&self) -> watch::Receiver<Option<Instant>> {
        self.paused_until.subscribe()
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: u32) -> WorkerId {
        format!("w-{number}").parse().unwrap()
    }

    #[test]
    fn fourth_release_is_delayed() {
        let unfit = Unfit::Version { here: 1, wanted: 2 };
        for (from, at_once) in
            [(QueueRole::Tasks, QueueRole::Requeued), (QueueRole::Suspect, QueueRole::Suspect)]
        {
            let mut headers = Headers { attempt: 2, loss: 1, ..Headers::default() };
            let mut queues = Vec::new();
            for _ in 0..5 {
                let Release::Requeue(to, next) = release(&unfit, from, &headers, &worker(1), 0) else {
                    panic!("given up")
                };
                queues.push(to);
                headers = next;
            }
            let slow = QueueRole::Retry(RetryDelay::Second);
            assert_eq!(queues, [at_once, at_once, at_once, slow, slow]);
            assert_eq!((headers.attempt, headers.loss, headers.released), (2, 1, 5), "at no cost");
        }
    }

    #[test]
    fn unprepared_batch_costs_nothing() {
        let unfit = Unfit::Unprepared("no server".into());
        let headers = Headers { attempt: 2, ..Headers::default() };
        let Release::Requeue(to, next) = release(&unfit, QueueRole::Tasks, &headers, &worker(1), 0) else {
            panic!("given up")
        };
        assert_eq!(to, QueueRole::Retry(RetryDelay::Second));
        assert_eq!((next.attempt, next.released), (2, 1));
    }

    #[test]
    fn undecodable_needs_three_workers() {
        let unfit = Unfit::Tasks("no number".into());
        let minute = 60_000;
        let mut headers = Headers::default();
        let mut refuse =
            |by: u32, now_ms| match release(&unfit, QueueRole::Tasks, &headers, &worker(by), now_ms) {
                Release::Requeue(_, next) => {
                    headers = next;
                    false
                }
                Release::Fail => true,
            };
        assert!(!refuse(1, 1_000));
        assert!(!refuse(1, 1_000 + 5 * minute), "one worker alone");
        assert!(!refuse(2, 1_000 + 5 * minute), "two workers");
        assert!(refuse(3, 1_000 + 5 * minute));
        assert!(refuse(2, 1_000 + 6 * minute) || headers.undecodable.is_some());
        let mut headers = Headers::default();
        for by in 1..=3 {
            let next = release(&unfit, QueueRole::Tasks, &headers, &worker(by), minute);
            let Release::Requeue(_, next) = next else { panic!("within a minute") };
            headers = next;
        }
        assert_eq!(headers.undecodable.as_deref(), Some("60000 w-1 w-2 w-3"));
        assert_eq!(release(&unfit, QueueRole::Tasks, &headers, &worker(3), 2 * minute), Release::Fail);
    }

    #[test]
    fn malformed_header_resets_count() {
        for odd in ["", "soon w-1", "-5 w"] {
            let parsed = Refusals::parse(Some(odd), 7);
            assert_eq!(parsed, Refusals { since_ms: 7, workers: Vec::new() }, "{odd:?}");
        }
        let long = format!("5{}", " w".repeat(1_000));
        assert_eq!(Refusals::parse(Some(&long), 7).workers.len(), UNDECODABLE_MIN_WORKERS);
    }

    #[test]
    fn consecutive_releases_pause() {
        let tracker = ReleaseTracker::default();
        let pauses = tracker.pauses();
        let mut now = Instant::now();
        for _ in 0..100 {
            (1..PAUSE_AFTER_RELEASES).for_each(|_| tracker.record_release(now));
            tracker.record_run();
        }
        assert_eq!(*pauses.borrow(), None);
        let mut lengths = Vec::new();
        for _ in 0..6 {
            while pauses.borrow().is_none_or(|until| until <= now) {
                tracker.record_release(now);
            }
            let until = pauses.borrow().unwrap();
            lengths.push((until - now).as_secs());
            (0..100).for_each(|_| tracker.record_release(now)); // these came before the pause
            assert_eq!(*pauses.borrow(), Some(until));
            now = until;
        }
        assert_eq!(lengths, [1, 2, 4, 8, 10, 10]);
        tracker.record_run();
        (1..PAUSE_AFTER_RELEASES).for_each(|_| tracker.record_release(now));
        assert_eq!(*pauses.borrow(), Some(now), "a batch was run, so the count restarts");
    }
}
