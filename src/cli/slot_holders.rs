//! The tasks that hold the slots of a lane, for the message that a job stalls.

use std::{collections::BTreeMap, time::Duration};

use gristmill_shared::{
    EventFilter, Lane, Transport,
    wire::{Event, RunningTask, WorkerBeat, now_ms},
};
use tokio::time::{Instant, timeout_at};

/// Time for which heartbeats are listened to: longer than from one to the next, which is 2 s.
const LISTEN_TIME: Duration = Duration::from_secs(3);
/// Least age of a task that is named because it holds a slot.
const HELD_LONG: Duration = Duration::from_secs(10);
/// Number of tasks that are named; the rest are counted.
const HELD_SHOWN: usize = 5;
/// Number of workers that are listened to; the tasks of others are not named.
const WORKERS_MAX: usize = 1_000;

/// Listens to the lane's workers for [`LISTEN_TIME`] and describes the tasks that hold a slot for
/// long, the longest first. Best effort: empty if nothing is heard.
pub(crate) async fn held_slots(transport: &dyn Transport, lane: Lane) -> Vec<String> {
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

fn describe<'a>(beats: impl Iterator<Item = &'a (WorkerBeat, u64)>) -> Vec<String> {
    let holds = |task: &RunningTask, sent_ms| !task.stuck && task.age(sent_ms) >= HELD_LONG;
    let mut held: Vec<_> = beats
        .flat_map(|(beat, sent_ms)| beat.running.iter().map(move |task| (task, &beat.worker, *sent_ms)))
        .filter(|(task, _, sent_ms)| holds(task, *sent_ms))
        .collect();
    held.sort_by_key(|(task, _, sent_ms)| std::cmp::Reverse(task.age(*sent_ms)));
    let more = held.len().saturating_sub(HELD_SHOWN);
    let named = held.iter().take(HELD_SHOWN).map(|(task, worker, sent_ms)| task.describe(worker, *sent_ms));
    named.chain((more > 0).then(|| format!("{more} more tasks hold a slot"))).collect()
}
