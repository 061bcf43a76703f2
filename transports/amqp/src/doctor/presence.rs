//! The workers and the sink of a lane, from their events and their consumers.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use gristmill_shared::{
    EventFilter, Finding, Lane, QueueRole, TransportError,
    wire::{Event, WorkerHeartbeat},
};
use tokio::time::{Instant, timeout_at};

use super::{inventory::BrokerInventory, probe::ProbeOutcome};
use crate::{
    connection::Generation,
    consume::{StreamReader, events},
    publish::properties,
};

/// Time for which events are collected. Workers send a heartbeat every 2 s.
const LISTEN_DURATION: Duration = Duration::from_secs(3);
/// Least age of a task that is named because it holds a slot.
const LONG_TASK_AGE_MIN: Duration = Duration::from_secs(10);
/// Number of tasks that are named; the rest are counted.
const LONG_TASKS_SHOWN_MAX: usize = 10;
/// Clock offset that is tolerated. Messages carry seconds, and take some time.
const CLOCK_TOLERANCE_S: u64 = 5;

/// A reader of the lane's events.
pub(super) struct PresenceListener {
    started: Instant,
    reader: Result<StreamReader, TransportError>,
}

/// The processes that sent events, and their clock offsets from this machine, in seconds.
#[derive(Default)]
pub(super) struct LanePresence {
    workers: BTreeMap<String, WorkerHeartbeat>,
    /// Time of each worker's last heartbeat, by its own clock, in milliseconds since 1970.
    heartbeats_ms: BTreeMap<String, u64>,
    clock_offsets_s: BTreeMap<String, u64>,
    unavailable: bool,
}

impl PresenceListener {
    pub(super) async fn start(generation: Arc<Generation>, lane: &Lane) -> Self {
        let key = events::binding_key(&EventFilter::Lane(lane.clone()));
        let reader = events::subscribe(generation, key).await;
        Self { started: Instant::now(), reader }
    }

    pub(super) fn outcome(&self) -> ProbeOutcome {
        match &self.reader {
            Ok(_) => ProbeOutcome::Allowed,
            Err(TransportError::PermissionDenied { lacks, .. }) => ProbeOutcome::Denied(lacks.clone()),
            Err(error) => ProbeOutcome::Untested(format!("events cannot be read: {error}")),
        }
    }

    /// Collects events until [`LISTEN_DURATION`] after the start.
    pub(super) async fn finish(self) -> LanePresence {
        let mut presence = LanePresence::default();
        let Ok(mut reader) = self.reader else { return LanePresence { unavailable: true, ..presence } };
        while let Ok(Ok(event)) = timeout_at(self.started + LISTEN_DURATION, reader.next()).await {
            let sent = event.properties.timestamp().unwrap_or_default();
            let message = properties::decode(&event.properties, Bytes::from(event.data), false);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if sent > 0 {
                presence.clock_offsets_s.insert(message.app.clone(), sent.abs_diff(now));
            }
            if let Ok(Event::Worker(beat)) = Event::decode(&message) {
                presence.heartbeats_ms.insert(message.app.clone(), message.timestamp_ms);
                presence.workers.insert(message.app, beat);
            }
        }
        presence
    }
}

impl LanePresence {
    pub(super) fn findings(&self, inventory: &BrokerInventory) -> Vec<Finding> {
        let sink = inventory.queue(QueueRole::Results).map(|(waiting, consumers)| {
            let found = format!("consumers of results: {consumers}, results that wait: {waiting}");
            match consumers {
                0 => Finding::warning("sink", found).hint("start a sink on this lane; results wait for it"),
                _ => Finding::ok("sink", found),
            }
        });
        let found = [sink, self.worker_finding(inventory), Some(self.clock_finding())].into_iter().flatten();
        found.chain(self.slot_findings()).collect()
    }

    /// Returns the tasks that have held a slot for [`LONG_TASK_AGE_MIN`] or longer, the longest
    /// first.
    fn slot_findings(&self) -> Vec<Finding> {
        const CHECK_NAME: &str = "slots";
        let held = self.workers.iter().flat_map(|(app, beat)| {
            let at_ms = self.heartbeats_ms.get(app).copied().unwrap_or_default();
            beat.running.iter().map(move |task| (task, &beat.worker, at_ms))
        });
        let mut held: Vec<_> =
            held.filter(|(task, _, at_ms)| task.age(*at_ms) >= LONG_TASK_AGE_MIN).collect();
        held.sort_by_key(|(task, _, at_ms)| Reverse(task.age(*at_ms)));
        let more = held.len().saturating_sub(LONG_TASKS_SHOWN_MAX);
        let named = held.iter().take(LONG_TASKS_SHOWN_MAX).map(|(task, worker, at_ms)| {
            let found = task.describe(worker, *at_ms);
            match (task.stuck, task.stopped) {
                (false, false) => Finding::ok(CHECK_NAME, found),
                (false, true) => Finding::warning(CHECK_NAME, found)
                    .hint("the worker gives the slot another thread after its --stop-grace"),
                (true, _) => Finding::warning(CHECK_NAME, found).hint(
                    "call cx.check() in the job; with more such threads than slots the worker ends with code 5",
                ),
            }
        });
        let more = (more > 0).then(|| Finding::ok(CHECK_NAME, format_args!("{more} more tasks hold a slot")));
        named.chain(more).collect()
    }

    /// Reports consumers of tasks and waiting batches. Each worker consumes all tasks queues, so
    /// their numbers of consumers should be equal.
    fn worker_finding(&self, inventory: &BrokerInventory) -> Option<Finding> {
        const CHECK_NAME: &str = "workers";
        let shards: Vec<_> =
            inventory.shards().queues().filter_map(|shard| Some((shard, inventory.queue(shard)?))).collect();
        let (_, (_, most)) = shards.iter().max_by_key(|(_, (_, consumers))| *consumers)?;
        let slots: u32 = self.workers.values().map(|beat| beat.slots).sum();
        let busy: u32 = self.workers.values().map(|beat| beat.busy).sum();
        let heard = match self.unavailable {
            true => "no events read".into(),
            false => format!("heard: {}, with {slots} slots, {busy} of them busy", self.workers.len()),
        };
        let waiting: u32 = shards.iter().map(|(_, (waiting, _))| waiting).sum();
        let again = inventory.waiting(QueueRole::ALL.into_iter().filter(|role| is_retried(*role)));
        let suspects = inventory.waiting([QueueRole::Suspect]);
        let shown = |count: Option<u32>| count.map_or("not shown".into(), |count| count.to_string());
        let found = format!(
            "consumers of tasks: {most}, batches that wait: {waiting}, to be tried again: {}, suspects: {}; {heard}",
            shown(again),
            shown(suspects)
        );
        let left = shards.iter().filter(|(_, (_, consumers))| *consumers == 0);
        let left: Vec<_> = left.map(|(shard, _)| inventory.name(*shard)).collect();
        Some(if *most == 0 {
            Finding::warning(CHECK_NAME, found).hint("start a worker on this lane; tasks wait for it")
        } else if left.is_empty() {
            Finding::ok(CHECK_NAME, found)
        } else {
            Finding::problem(CHECK_NAME, format_args!("{found}; no consumer on {}", left.join(", ")))
                .hint("restart the workers: each consumes the tasks queues that exist when it starts")
        })
    }

    fn clock_finding(&self) -> Finding {
        match self.clock_offsets_s.iter().max_by_key(|(_, apart)| **apart) {
            None => Finding::unseen("clock", "no process sent an event, so that no clock could be compared"),
            Some((app, apart)) if *apart > CLOCK_TOLERANCE_S => {
                Finding::warning("clock", format_args!("that of {app} is {apart} s from this machine's"))
                    .hint("set both by NTP; nothing is lost by it, but times and ages are wrong")
            }
            Some(_) => {
                let heard = self.clock_offsets_s.len();
                Finding::ok(
                    "clock",
                    format_args!("the clocks of {heard} processes agree with this machine's"),
                )
            }
        }
    }
}

/// True for the queues of failed and requeued batches.
fn is_retried(role: QueueRole) -> bool {
    matches!(role, QueueRole::Retry(_) | QueueRole::Requeued)
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{JobId, Severity, TaskIndex, wire::RunningTask};

    use super::*;

    #[test]
    fn long_tasks_are_named() {
        let task = |since_ms, stopped| RunningTask {
            job: JobId::generate(),
            kind: "spin".parse().unwrap(),
            first: TaskIndex(0),
            count: 1,
            index: TaskIndex(since_ms),
            attempt: 1,
            slot: 0,
            since_ms,
            stuck: false,
            stopped,
        };
        let heard = |running| {
            let (worker, lane) = ("mill-1".parse().unwrap(), Lane::default());
            let beat = WorkerHeartbeat { worker, lane, slots: 1, busy: 1, done: 0, errors: 0, running };
            let workers = BTreeMap::from([("mill-1".to_owned(), beat)]);
            LanePresence {
                workers,
                heartbeats_ms: BTreeMap::from([("mill-1".to_owned(), 60_000)]),
                ..LanePresence::default()
            }
        };
        let found = heard(vec![task(50_000, false), task(50_001, false), task(1_000, true)]).slot_findings();
        let verdicts: Vec<_> = found.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Severity::Warning, Severity::Ok], "{found:?}");
        assert!(found[0].found.contains("for 59s; the job has ended"), "{found:?}");
        let many =
            heard((0..LONG_TASKS_SHOWN_MAX as u64 + 3).map(|ms| task(ms, false)).collect()).slot_findings();
        assert_eq!(many.last().unwrap().found, "3 more tasks hold a slot");
    }

    #[test]
    fn clock_offset_is_a_warning() {
        let clock_offsets_s = BTreeMap::from([("worker-1".to_owned(), 1), ("worker-2".to_owned(), 60)]);
        let found = LanePresence { clock_offsets_s, ..LanePresence::default() }.clock_finding();
        assert_eq!(found.verdict, Severity::Warning);
        assert!(found.found.contains("worker-2 is 60 s"), "{found:?}");
        assert_eq!(LanePresence::default().clock_finding().verdict, Severity::Unseen);
    }
}
