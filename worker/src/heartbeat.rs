//! Heartbeats: events that say that this worker is alive and what it runs.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use gristmill_shared::{
    Address, Outgoing, Publisher, Topic,
    wire::{RUNNING_MAX_TASKS, RunningTask, WireMessage, WorkerHeartbeat, now_ms},
};

use tokio::time::MissedTickBehavior;

use crate::{context::WorkerContext, executor::SlotLease};

/// Interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);

/// Publishes heartbeats for ever. They are best effort: the answer of the broker is ignored.
pub(crate) async fn run(
    context: Arc<WorkerContext>,
    publisher: Arc<dyn Publisher>,
    slots: Vec<Arc<SlotLease>>,
) {
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay); // an outage is not caught up with
    loop {
        beats.tick().await;
        let beat = WorkerHeartbeat {
            worker: context.id.clone(),
            lane: context.lane.clone(),
            slots: u32::try_from(slots.len()).unwrap_or(u32::MAX),
            busy: context.counts.busy.load(Ordering::Relaxed),
            done: context.counts.done.load(Ordering::Relaxed),
            errors: context.counts.errors.load(Ordering::Relaxed),
            running: running_tasks(&slots),
        };
        let id = format!("{}/beat/{}", context.id, context.next_message_seq());
        let to = Address::Events(Topic::Worker(context.lane.clone(), context.id.clone()));
        let _ =
            publisher.publish(vec![Outgoing { to, message: beat.message(id, context.id.as_str()) }]).await;
    }
}

/// Returns the tasks that have held a thread for [`HEARTBEAT_INTERVAL`] or longer, the longest
/// first.
fn running_tasks(slots: &[Arc<SlotLease>]) -> Vec<RunningTask> {
    let (now, now_ms) = (Instant::now(), now_ms());
    let mut held: Vec<_> = (0..)
        .zip(slots)
        .flat_map(|(slot, lease)| lease.held_tasks(now).into_iter().map(move |task| (slot, task)))
        .filter(|(_, task)| now.saturating_duration_since(task.since) >= HEARTBEAT_INTERVAL)
        .collect();
    held.sort_by_key(|(_, task)| task.since);
    held.truncate(RUNNING_MAX_TASKS);
    held.iter().map(|(slot, task)| task.to_wire(*slot, now, now_ms)).collect()
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use gristmill_shared::Published;
    use tokio::{sync::watch, time::Instant};

    use super::*;

    /// A publisher that records the times of publishes and answers when it is allowed to.
    #[derive(Debug)]
    struct BeatRecorder {
        beats: watch::Sender<Vec<Instant>>,
        answers: watch::Sender<bool>,
    }

    #[async_trait]
    impl Publisher for BeatRecorder {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
            self.beats.send_modify(|beats| beats.push(Instant::now()));
            self.answers.subscribe().wait_for(|answers| *answers).await.unwrap();
            vec![Published::Confirmed; batch.len()]
        }
    }

    #[tokio::test(start_paused = true)]
    async fn outage_is_not_caught_up_with() {
        let broker =
            Arc::new(BeatRecorder { beats: watch::Sender::default(), answers: watch::Sender::new(false) });
        let beating =
            tokio::spawn(run(WorkerContext::for_test().await, Arc::clone(&broker) as _, Vec::new()));
        tokio::time::sleep(HEARTBEAT_INTERVAL * 10).await;
        broker.answers.send_replace(true);
        broker.beats.subscribe().wait_for(|beats| beats.len() >= 4).await.unwrap();
        beating.abort();
        let beats = broker.beats.borrow().clone();
        let pauses: Vec<_> = beats.windows(2).skip(1).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().all(|pause| *pause >= HEARTBEAT_INTERVAL), "{pauses:?}");
    }
}
