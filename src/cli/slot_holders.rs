//! The tasks that hold the slots of a lane, for the message about a stalled job.

use std::{collections::BTreeMap, time::Duration};

use gristmill_shared::{
    EventFilter, Lane, Transport,
    wire::{Event, RunningTask, WorkerHeartbeat, now_ms},
};
use tokio::time::{Instant, timeout_at};

/// Time for which heartbeats are collected: longer than their interval of 2 s.
const LISTEN_TIME: Duration = Duration::from_secs(3);
/// Minimum age of a task that is reported to hold a slot.
const HELD_AGE_MIN: Duration = Duration::from_secs(10);
/// Maximum number of tasks that are named; the rest are counted.
const HELD_SHOWN_MAX: usize = 5;
/// Maximum number of workers whose tasks are collected; the tasks of others are not named.
const WORKERS_MAX: usize = 1_000;

/// Collects the heartbeats of the lane's workers for [`LISTEN_TIME`] and describes the tasks that
/// have held a slot for [`HELD_AGE_MIN`], the longest first. Best effort: empty if no heartbeat
/// arrives.
pub(crate) async fn describe_slot_holders(transport: &dyn Transport, lane: Lane) -> Vec<String> {
    let until = Instant::now() + LISTEN_TIME;
    let Ok(Ok(mut events)) = timeout_at(until, transport.events(EventFilter::Lane(lane))).await else {
        return Vec::new();
    };
    let mut beats = BTreeMap::new();
    while let Ok(Ok(message)) = timeout_at(until, events.next()).await {
        if let Ok(Event::Worker(beat)) = Event::decode(&message)
            && (beats.len() < WORKERS_MAX || beats.contains_key(&beat.worker))
        {
            let sent_ms = if message.timestamp_ms > 0 { message.timestamp_ms } else { now_ms() };
            beats.insert(beat.worker.clone(), (beat, sent_ms));
        }
    }
    describe(beats.values())
}

fn describe<'a>(beats: impl Iterator<Item = &'a (WorkerHeartbeat, u64)>) -> Vec<String> {
    let holds = |task: &RunningTask, sent_ms| !task.stuck && task.age(sent_ms) >= HELD_AGE_MIN;
    let mut held: Vec<_> = beats
        .flat_map(|(beat, sent_ms)| beat.running.iter().map(move |task| (task, &beat.worker, *sent_ms)))
        .filter(|(task, _, sent_ms)| holds(task, *sent_ms))
        .collect();
    held.sort_by_key(|(task, _, sent_ms)| std::cmp::Reverse(task.age(*sent_ms)));
    let more = held.len().saturating_sub(HELD_SHOWN_MAX);
    let named =
        held.iter().take(HELD_SHOWN_MAX).map(|(task, worker, sent_ms)| task.describe(worker, *sent_ms));
    named.chain((more > 0).then(|| format!("{more} more tasks hold a slot"))).collect()
}
