//! Tells whoever listens that this worker is alive.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use gristmill_shared::{
    Address, Outgoing, Publisher, Topic,
    wire::{Form, RUNNING_MAX_TASKS, RunningTask, WorkerBeat, now_ms},
};

use tokio::time::MissedTickBehavior;

use crate::{context::Shop, executor::Seat};

/// How often a worker says that it is alive.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// Never ends. Nobody depends on a beat, so what becomes of it is not looked at.
pub(crate) async fn run(shop: Arc<Shop>, publisher: Arc<dyn Publisher>, slots: Vec<Arc<Seat>>) {
    let mut beats = tokio::time::interval(BEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay); // those that an outage swallowed are not made up for
    loop {
        beats.tick().await;
        let beat = WorkerBeat {
            worker: shop.id.clone(),
            lane: shop.lane.clone(),
            slots: u32::try_from(slots.len()).unwrap_or(u32::MAX),
            busy: shop.counts.busy.load(Ordering::Relaxed),
            done: shop.counts.done.load(Ordering::Relaxed),
            errors: shop.counts.errors.load(Ordering::Relaxed),
            running: running(&slots),
        };
        let id = format!("{}/beat/{}", shop.id, shop.message_number());
        let to = Address::Events(Topic::Worker(shop.lane.clone(), shop.id.clone()));
        let _ = publisher.publish(vec![Outgoing { to, message: beat.message(id, shop.id.as_str()) }]).await;
    }
}

/// Returns the tasks that have held a thread for [`BEAT_EVERY`] or longer, the longest first.
fn running(slots: &[Arc<Seat>]) -> Vec<RunningTask> {
    let (now, now_ms) = (Instant::now(), now_ms());
    let mut held: Vec<_> = (0..)
        .zip(slots)
        .flat_map(|(slot, seat)| seat.tasks(now).into_iter().map(move |task| (slot, task)))
        .filter(|(_, task)| now.saturating_duration_since(task.since) >= BEAT_EVERY)
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

    /// When somebody published, and whether the answers come.
    #[derive(Debug)]
    struct Broker {
        beats: watch::Sender<Vec<Instant>>,
        answers: watch::Sender<bool>,
    }

    #[async_trait]
    impl Publisher for Broker {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
            self.beats.send_modify(|beats| beats.push(Instant::now()));
            self.answers.subscribe().wait_for(|answers| *answers).await.unwrap();
            vec![Published::Stored; batch.len()]
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beats_that_an_outage_swallowed_are_not_made_up_for() {
        let broker = Arc::new(Broker { beats: watch::Sender::default(), answers: watch::Sender::new(false) });
        let beating = tokio::spawn(run(Shop::of_nothing().await, Arc::clone(&broker) as _, Vec::new()));
        tokio::time::sleep(BEAT_EVERY * 10).await;
        broker.answers.send_replace(true);
        broker.beats.subscribe().wait_for(|beats| beats.len() >= 4).await.unwrap();
        beating.abort();
        let beats = broker.beats.borrow().clone();
        let pauses: Vec<_> = beats.windows(2).skip(1).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().all(|pause| *pause >= BEAT_EVERY), "{pauses:?}");
    }
}
