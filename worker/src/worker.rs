//! The worker as a whole: what it is made of, and how it starts and leaves.

use std::{
    fmt,
    future::Future,
    num::NonZeroU16,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_process::Command;
use gristmill_shared::{
    BuildId, Consumer, JobBoard, Lane, QueueRole, Registry, Shards, Transport, WorkerId, meter::WORKER_SLOTS,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    WorkerError,
    consumer::{self, Intake, LOWEST, PER_SLOT},
    context::Shop,
    executor::Crew,
    heartbeat,
    isolate::Isolation,
    outbound::{hand_on_all, handoffs},
    run_queue::waiting,
};

/// How long running tasks may take to end after the worker was told to leave.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Time for which a task may go on after its job was stopped, before its slot gets another thread.
/// More than a time limit's, since a stop comes unforeseen: a task may look for it every few
/// seconds only.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a leaving worker waits, after that, for the broker to take what it has.
const SETTLING_GRACE: Duration = Duration::from_secs(10);
/// Time that the end of a child process may take before its slot's thread is given up: SIGKILL
/// follows SIGTERM after 1 s, and a killed process may take 1 s to go.
const CHILD_END_GRACE: Duration = Duration::from_secs(3);
/// The most messages a worker holds of the tasks queue; and as many retried ones, and as many of all further shards.
const PREFETCH_MAX: u16 = 512;
/// How many retried ones it holds while batches take long; of the others it holds as many as it has slots.
const PREFETCH_AGAIN_WHEN_LONG: u16 = 1;
/// A process runs one suspect at a time.
const PREFETCH_SUSPECT: u16 = 1;

/// A worker: takes batches of a lane, runs their tasks, hands on the outcomes.
#[derive(Debug, Clone)]
pub struct Worker {
    registry: Registry,
    lane: Lane,
    shards: Shards,
    slots: NonZeroU16,
    grace: Duration,
    stop_grace: Duration,
    isolation: Option<Isolation>,
    id: WorkerId,
    build: Option<BuildId>,
}

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerReport {
    /// Batches begun.
    pub batches: u64,
    /// Tasks that gave an output.
    pub done: u64,
    /// Tries that ended in an error.
    pub errors: u64,
    /// Tasks that nobody needed any more.
    pub skipped: u64,
    /// Batches, or ends of batches, left to others: when the worker was told to leave, or when a task beside them ran too long.
    pub handed_back: u64,
    /// Slots whose task did not end within the grace; what was not handed on of their batches was handed back.
    pub abandoned: u32,
}

impl fmt::Display for WorkerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batches, done, errors, skipped, handed_back, abandoned } = self;
        write!(
            f,
            "{done} tasks done in {batches} batches, {errors} errors, {skipped} skipped, \
             {handed_back} batches handed back, {abandoned} abandoned"
        )
    }
}

impl Worker {
    /// A worker for the lane `default` with one slot.
    #[must_use]
    pub fn new(registry: Registry, id: WorkerId) -> Self {
        Self {
            registry,
            lane: Lane::default(),
            shards: Shards::ONE,
            slots: NonZeroU16::MIN,
            grace: DEFAULT_GRACE,
            stop_grace: DEFAULT_STOP_GRACE,
            isolation: None,
            id,
            build: None,
        }
    }

    /// Names the build of the program, which travels with the outcomes.
    #[must_use]
    pub fn build(self, build: Option<BuildId>) -> Self {
        Self { build, ..self }
    }

    /// Serves this lane.
    #[must_use]
    pub fn lane(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// Makes so many shards of the lane where there are fewer. It takes from all that there are when it starts, also from
    /// those that others made, and not from those that others make later.
    #[must_use]
    pub fn shards(self, shards: Shards) -> Self {
        Self { shards, ..self }
    }

    /// Runs this many tasks at a time, each on a thread of its own.
    #[must_use]
    pub fn slots(self, slots: NonZeroU16) -> Self {
        Self { slots, ..self }
    }

    /// Waits this long for running tasks when told to leave. Defaults to [`DEFAULT_GRACE`].
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Lets a task go on for at most this long after its job was stopped, at least 1 ms. Then its
    /// slot gets another thread, and the old one counts as stuck until the task ends. Defaults to
    /// [`DEFAULT_STOP_GRACE`].
    #[must_use]
    pub fn stop_grace(self, stop_grace: Duration) -> Self {
        Self { stop_grace: stop_grace.max(Duration::from_millis(1)), ..self }
    }

    /// Runs the batches of each slot in a child process of the slot's own. The command starts this
    /// same program, which must call [`serve_isolated`](crate::serve_isolated) with the kinds that
    /// this worker knows. A task that hangs, crashes or overflows its stack costs the child and one
    /// attempt of that task, and nothing else. The child's form is internal and may change.
    #[must_use]
    pub fn isolate(self, command: Command) -> Self {
        Self { isolation: Some(Isolation::new(command)), ..self }
    }

    /// Works until `shutdown` resolves; then takes nothing more, lets the running tasks end, hands back the rest
    /// without cost, and settles.
    ///
    /// Dropping the future leaves at once: slots end after their running task, and what was not settled runs again
    /// elsewhere.
    ///
    /// # Errors
    /// [`WorkerError`] if the broker goes, or takes no outcomes for a reason that waiting does not mend.
    pub async fn run_until(
        self,
        transport: Arc<dyn Transport>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<WorkerReport, WorkerError> {
        transport.open_lane(&self.lane).await?;
        let shards = transport.open_shards(&self.lane, self.shards).await?;
        let publisher = transport.publisher().await?;
        let (board, following) = JobBoard::open(&*transport).await?;
        let mut shop = Shop::new(
            self.registry.clone(),
            board,
            Arc::clone(&transport),
            self.lane.clone(),
            self.id.clone(),
            self.build.clone(),
        );
        let isolation = self.isolation.clone();
        shop.isolation = isolation.map(|isolation| Isolation { stop_grace: self.stop_grace, ..isolation });
        // The slot's thread ends the child, and so is free a little later.
        let stop_grace = match self.isolation {
            Some(_) => self.stop_grace.saturating_add(CHILD_END_GRACE),
            None => self.stop_grace,
        };
        let shop = Arc::new(shop);
        let _halt_on_drop = HaltOnDrop(Arc::clone(&shop));

        let (work, waiting) = waiting(self.slots.get().into());
        let (handoffs, to_hand_on) = handoffs();
        let crew = Crew::start(self.slots, stop_grace, Arc::clone(&shop), waiting.clone(), handoffs.clone())?;
        let leaving = CancellationToken::new();
        let mut intakes = FuturesUnordered::new();
        for (from, prefetch) in prefetches(self.slots.get(), shards) {
            let intake = Intake {
                from,
                prefetch,
                shop: Arc::clone(&shop),
                work: work.clone(),
                waiting: waiting.clone(),
                handoffs: handoffs.clone(),
                leaving: leaving.clone(),
            };
            let sources = intake.open().await?;
            intakes.push(AbortOnDropHandle::new(tokio::spawn(intake.run(sources))));
        }
        drop(work);
        let _beat = AbortOnDropHandle::new(tokio::spawn(heartbeat::run(
            Arc::clone(&shop),
            Arc::clone(&publisher),
            crew.seats(),
        )));
        let watched = Arc::clone(&shop);
        let _watch = AbortOnDropHandle::new(tokio::spawn(async move { watched.watch_connection().await }));
        let (cached, slots) = (Arc::clone(&shop), waiting.clone());
        let _tidy = AbortOnDropHandle::new(tokio::spawn(async move { cached.jobs.watch(&slots).await }));
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        WORKER_SLOTS.set([], self.slots.get().into());
        tracing::info!(
            worker = %self.id, lane = %self.lane, %shards, slots = self.slots, transport = %transport, "taking tasks"
        );

        let leave = async {
            tokio::select! {
                () = shutdown => {}
                () = crew.too_many_stuck.cancelled() => {}
            }
            shop.halt.stop();
            leaving.cancel();
            Ok(())
        };
        let intakes_ended = async {
            let mut consumers: Vec<Box<dyn Consumer>> = Vec::new();
            while let Some(intake) = intakes.next().await {
                consumers.extend(intake.map_err(|_| WorkerError::Died)??);
            }
            Ok::<_, WorkerError>(consumers)
        };
        let handed_back = async {
            leaving.cancelled().await;
            let never = CancellationToken::new();
            consumer::hand_back_all(&shop, &waiting, &handoffs, &never).await;
            Ok(())
        };
        let no_more = CancellationToken::new();
        let worked = async {
            let slots_ended = crew.ended(&leaving, self.grace);
            let ((), consumers, (), ()) = futures::try_join!(leave, intakes_ended, handed_back, slots_ended)?;
            no_more.cancel();
            Ok::<_, WorkerError>(consumers)
        };
        let handed_on = async { Ok(hand_on_all(&shop, to_hand_on, &*publisher, &waiting, &no_more).await?) };
        let too_long = async {
            leaving.cancelled().await;
            tokio::time::sleep(self.grace + SETTLING_GRACE).await;
        };
        tokio::select! {
            ended = async { futures::try_join!(worked, handed_on) } => {
                let (consumers, ()) = ended?;
                for consumer in consumers {
                    consumer.close().await;
                }
            }
            () = too_long => {
                tracing::warn!("the broker takes no outcomes; leaving, what was not settled runs again elsewhere");
            }
            lost = following => return Err(lost.map_or(WorkerError::Died, WorkerError::from)),
            error = crew.watch() => return Err(error),
        }
        let counts = &shop.counts;
        if crew.too_many_stuck.is_cancelled() {
            let threads = counts.stuck.load(Ordering::Relaxed);
            return Err(WorkerError::Stuck { threads, slots: self.slots.get() });
        }
        Ok(WorkerReport {
            batches: counts.batches.load(Ordering::Relaxed),
            done: counts.done.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
            skipped: counts.skipped.load(Ordering::Relaxed),
            handed_back: counts.handed_back.load(Ordering::Relaxed),
            abandoned: counts.abandoned.load(Ordering::Relaxed),
        })
    }
}

/// Of each queue how many deliveries are held, by the pace's level.
///
/// The first shard has as many as if it were the only one, since jobs that are not sent to several shards go there alone.
/// The further ones share as many again, one each at least.
fn prefetches(slots: u16, shards: Shards) -> Vec<(QueueRole, [u16; PER_SLOT.len()])> {
    let tasks = PER_SLOT.map(|per_slot| slots.saturating_mul(per_slot).min(PREFETCH_MAX));
    let mut again = tasks;
    again[LOWEST] = PREFETCH_AGAIN_WHEN_LONG;
    let further = u16::from(shards.get()).saturating_sub(1).max(1);
    let shared = tasks.map(|tasks| tasks.div_ceil(further));
    let mut of_all = vec![
        (QueueRole::Suspect, [PREFETCH_SUSPECT; PER_SLOT.len()]), // taken first, since it is run first
        (QueueRole::Tasks, tasks),
        (QueueRole::Again, again),
    ];
    of_all.extend(shards.queues().skip(1).map(|shard| (shard, shared)));
    of_all
}

/// However a worker ends, its slots begin no further task.
struct HaltOnDrop(Arc<Shop>);

impl Drop for HaltOnDrop {
    fn drop(&mut self) {
        self.0.halt.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_shards_share_what_the_first_has_alone() {
        let held = |slots, shards, level: usize| -> Vec<u16> {
            let of_all = prefetches(slots, Shards::new(shards).unwrap());
            let tasks =
                of_all.iter().filter(|(from, _)| !matches!(from, QueueRole::Suspect | QueueRole::Again));
            tasks.map(|(_, prefetch)| prefetch[level]).collect()
        };
        assert_eq!(held(4, 1, LOWEST), [4]);
        assert_eq!(held(4, 3, LOWEST), [4, 2, 2]);
        assert_eq!(held(2, 5, LOWEST), [2, 1, 1, 1, 1], "none without, though there are more than slots");
        assert_eq!(held(4, 3, PER_SLOT.len() - 1), [512, 256, 256]);
    }
}
