//! The worker as a whole: its parts, its start and its shutdown.

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
    BuildId, Consumer, JobTracker, Lane, QueueRole, Registry, Shards, Transport, WorkerId,
    metrics::WORKER_SLOTS,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    WorkerError,
    consumer::{self, BATCHES_PER_SLOT, LOWEST_LEVEL, QueueConsumer},
    context::WorkerContext,
    executor::SlotPool,
    heartbeat,
    isolate::Isolation,
    outbound::{outbound_channel, publish_outbound},
    run_queue::run_queue,
};

/// Time for which running tasks may continue after the shutdown of the worker begins.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Time for which a task may go on after its job was stopped, before its slot gets another thread.
/// Longer than the grace after a time limit, since a stop is unforeseen: a task may check for it
/// only every few seconds.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);
/// Time after that grace for which a leaving worker waits for the broker to take its outcomes.
const SETTLING_GRACE: Duration = Duration::from_secs(10);
/// Time that the end of a child process may take before its slot's thread is given up: SIGKILL
/// follows SIGTERM after 1 s, and a killed process may take 1 s to go.
const CHILD_END_GRACE: Duration = Duration::from_secs(3);
/// Deliveries of the tasks queue that a worker holds at most; the same for retried ones, and for
/// all further shards together.
const PREFETCH_MAX: u16 = 512;
/// Retried deliveries that a worker holds while batches take long. Of the tasks queue it then holds
/// as many as it has slots.
const LONG_PREFETCH_AGAIN: u16 = 1;
/// Suspects that a process holds, and so runs, at a time.
const PREFETCH_SUSPECT: u16 = 1;

/// A worker: takes batches of a lane, runs their tasks, publishes the outcomes.
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

/// The counts of a worker's run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerReport {
    /// Batches begun.
    pub batches: u64,
    /// Tasks that gave an output.
    pub done: u64,
    /// Tries that ended in an error.
    pub errors: u64,
    /// Tasks that were no longer needed.
    pub skipped: u64,
    /// Batches, or rests of batches, returned to the queue: because the worker left, or because a
    /// task of the batch ran too long.
    pub handed_back: u64,
    /// Slots whose task did not end within the grace; the rest of their batches was returned to the
    /// queue.
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

    /// Sets the build of the program, which travels with the outcomes.
    #[must_use]
    pub fn build(self, build: Option<BuildId>) -> Self {
        Self { build, ..self }
    }

    /// Serves this lane.
    #[must_use]
    pub fn lane(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// Raises the lane's shards to at least this number. The worker takes from all shards that
    /// exist when it starts, also from those that others made, but not from shards made later.
    #[must_use]
    pub fn shards(self, shards: Shards) -> Self {
        Self { shards, ..self }
    }

    /// Runs this many tasks at a time, each on a thread of its own.
    #[must_use]
    pub fn slots(self, slots: NonZeroU16) -> Self {
        Self { slots, ..self }
    }

    /// Waits this long for running tasks at shutdown. Defaults to [`DEFAULT_GRACE`].
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

    /// Works until `shutdown` resolves; then takes no more batches, lets the running tasks end,
    /// returns the rest to the queue without cost, and settles.
    ///
    /// Dropping the future leaves at once: slots end after their running task, and unsettled
    /// batches run again elsewhere.
    ///
    /// # Errors
    /// [`WorkerError`] if the broker is gone, or takes no outcomes for a reason that does not pass
    /// by waiting.
    pub async fn run_until(
        self,
        transport: Arc<dyn Transport>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<WorkerReport, WorkerError> {
        transport.open_lane(&self.lane).await?;
        let shards = transport.open_shards(&self.lane, self.shards).await?;
        let publisher = transport.publisher().await?;
        let (tracker, following) = JobTracker::open(&*transport).await?;
        let mut context = WorkerContext::new(
            self.registry.clone(),
            tracker,
            Arc::clone(&transport),
            self.lane.clone(),
            self.id.clone(),
            self.build.clone(),
        );
        let isolation = self.isolation.clone();
        context.isolation = isolation.map(|isolation| Isolation { stop_grace: self.stop_grace, ..isolation });
        // The slot's thread ends the child, and so is free a little later.
        let stop_grace = match self.isolation {
            Some(_) => self.stop_grace.saturating_add(CHILD_END_GRACE),
            None => self.stop_grace,
        };
        let context = Arc::new(context);
        let _halt_on_drop = HaltOnDrop(Arc::clone(&context));

        let (run_sender, run_receiver) = run_queue(self.slots.get().into());
        let (outbound_queue, outbound_receiver) = outbound_channel();
        let pool = SlotPool::start(
            self.slots,
            stop_grace,
            Arc::clone(&context),
            run_receiver.clone(),
            outbound_queue.clone(),
        )?;
        let leaving = CancellationToken::new();
        let mut queue_consumers = FuturesUnordered::new();
        for (from, prefetch) in prefetch_levels(self.slots.get(), shards) {
            let queue_consumer = QueueConsumer {
                from,
                prefetch,
                context: Arc::clone(&context),
                run_sender: run_sender.clone(),
                run_receiver: run_receiver.clone(),
                outbound_queue: outbound_queue.clone(),
                leaving: leaving.clone(),
            };
            let levels = queue_consumer.open().await?;
            queue_consumers.push(AbortOnDropHandle::new(tokio::spawn(queue_consumer.run(levels))));
        }
        drop(run_sender);
        let _heartbeat = AbortOnDropHandle::new(tokio::spawn(heartbeat::run(
            Arc::clone(&context),
            Arc::clone(&publisher),
            pool.leases(),
        )));
        let observed = Arc::clone(&context);
        let _watch = AbortOnDropHandle::new(tokio::spawn(async move { observed.watch_connection().await }));
        let (cached, slots) = (Arc::clone(&context), run_receiver.clone());
        let _cleanup =
            AbortOnDropHandle::new(tokio::spawn(async move { cached.jobs.watch_ended(&slots).await }));
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        WORKER_SLOTS.set([], self.slots.get().into());
        tracing::info!(
            worker = %self.id, lane = %self.lane, %shards, slots = self.slots, transport = %transport, "taking tasks"
        );

        let leave = async {
            tokio::select! {
                () = shutdown => {}
                () = pool.stuck_limit_reached.cancelled() => {}
            }
            context.halt.stop();
            leaving.cancel();
            Ok(())
        };
        let consumers_ended = async {
            let mut consumers: Vec<Box<dyn Consumer>> = Vec::new();
            while let Some(ended) = queue_consumers.next().await {
                consumers.extend(ended.map_err(|_| WorkerError::Died)??);
            }
            Ok::<_, WorkerError>(consumers)
        };
        let requeued = async {
            leaving.cancelled().await;
            let never = CancellationToken::new();
            consumer::requeue_all(&context, &run_receiver, &outbound_queue, &never).await;
            Ok(())
        };
        let all_emitted = CancellationToken::new();
        let worked = async {
            let slots_ended = pool.wait_finished(&leaving, self.grace);
            let ((), consumers, (), ()) = futures::try_join!(leave, consumers_ended, requeued, slots_ended)?;
            all_emitted.cancel();
            Ok::<_, WorkerError>(consumers)
        };
        let published = async {
            Ok(publish_outbound(&context, outbound_receiver, &*publisher, &run_receiver, &all_emitted)
                .await?)
        };
        let too_long = async {
            leaving.cancelled().await;
            tokio::time::sleep(self.grace + SETTLING_GRACE).await;
        };
        tokio::select! {
            ended = async { futures::try_join!(worked, published) } => {
                let (consumers, ()) = ended?;
                for consumer in consumers {
                    consumer.close().await;
                }
            }
            () = too_long => {
                tracing::warn!("the broker takes no outcomes; the worker leaves, and what was not settled runs again elsewhere");
            }
            lost = following => return Err(lost.map_or(WorkerError::Died, WorkerError::from)),
            error = pool.watch_deadlines() => return Err(error),
        }
        let counts = &context.counts;
        if pool.stuck_limit_reached.is_cancelled() {
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

/// Returns for each queue the number of deliveries held at each prefetch level.
///
/// The first shard has as many as if it were the only one, since jobs that are not sent to several
/// shards use it alone. The further ones share the same number, at least one each.
fn prefetch_levels(slots: u16, shards: Shards) -> Vec<(QueueRole, [u16; BATCHES_PER_SLOT.len()])> {
    let tasks = BATCHES_PER_SLOT.map(|per_slot| slots.saturating_mul(per_slot).min(PREFETCH_MAX));
    let mut again = tasks;
    again[LOWEST_LEVEL] = LONG_PREFETCH_AGAIN;
    let further = u16::from(shards.get()).saturating_sub(1).max(1);
    let shared = tasks.map(|tasks| tasks.div_ceil(further));
    let mut levels = vec![
        (QueueRole::Suspect, [PREFETCH_SUSPECT; BATCHES_PER_SLOT.len()]), // first to run
        (QueueRole::Tasks, tasks),
        (QueueRole::Requeued, again),
    ];
    levels.extend(shards.queues().skip(1).map(|shard| (shard, shared)));
    levels
}

/// Stops the slots before their next task, however the worker ends.
struct HaltOnDrop(Arc<WorkerContext>);

impl Drop for HaltOnDrop {
    fn drop(&mut self) {
        self.0.halt.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_shards_share_prefetch() {
        let held = |slots, shards, level: usize| -> Vec<u16> {
            let queues = prefetch_levels(slots, Shards::new(shards).unwrap());
            let tasks =
                queues.iter().filter(|(from, _)| !matches!(from, QueueRole::Suspect | QueueRole::Requeued));
            tasks.map(|(_, prefetch)| prefetch[level]).collect()
        };
        assert_eq!(held(4, 1, LOWEST_LEVEL), [4]);
        assert_eq!(held(4, 3, LOWEST_LEVEL), [4, 2, 2]);
        assert_eq!(
            held(2, 5, LOWEST_LEVEL),
            [2, 1, 1, 1, 1],
            "none without, though there are more than slots"
        );
        assert_eq!(held(4, 3, BATCHES_PER_SLOT.len() - 1), [512, 256, 256]);
    }
}
