//! Who is heard on a lane.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use gristmill_shared::{
    EventFilter, Lane, QueueRole, TransportError,
    wire::{Event, WorkerBeat},
};
use tokio::time::{Instant, timeout_at};

use super::{finding::Finding, inventory::Standing, probe::Tried};
use crate::{consume::events, consume::stream_reader::Feed, connection::generation::Generation, publish::properties};

/// How long is listened. Workers say every 2 s that they are alive.
const LISTEN: Duration = Duration::from_secs(3);
/// Least age of a task that is named because it holds a slot.
const HELD_LONG: Duration = Duration::from_secs(10);
/// Number of tasks that are named; the rest are counted.
const HELD_SHOWN: usize = 10;
/// Beyond this clocks differ. Messages tell seconds, and take some time.
const CLOCK_TOLERANCE_S: u64 = 5;

/// A queue that hears the lane's events.
pub(super) struct Hearing {
    began: Instant,
    feed: Result<Feed, TransportError>,
}

/// Who was heard, and how far the clock of each was from ours, in seconds.
#[derive(Default)]
pub(super) struct Heard {
    workers: BTreeMap<String, WorkerBeat>,
    /// The time of each worker's last heartbeat, by its own clock, in milliseconds since 1970.
    beats_ms: BTreeMap<String, u64>,
    clocks: BTreeMap<String, u64>,
    deaf: bool,
}

impl Hearing {
    pub(super) async fn begin(generation: Arc<Generation>, lane: &Lane) -> Self {
        let key = events::binding_key(&EventFilter::Lane(lane.clone()));
        let feed = events::listen(generation, key).await;
        Self { began: Instant::now(), feed }
    }

    pub(super) fn tried(&self) -> Tried {
        match &self.feed {
            Ok(_) => Tried::May,
            Err(TransportError::Forbidden { lacks, .. }) => Tried::MayNot(lacks.clone()),
            Err(error) => Tried::Untried(format!("events were not heard: {error}")),
        }
    }

    /// Listens until [`LISTEN`] after it began.
    pub(super) async fn finish(self) -> Heard {
        let mut heard = Heard::default();
        let Ok(mut feed) = self.feed else { return Heard { deaf: true, ..heard } };
        while let Ok(Ok(event)) = timeout_at(self.began + LISTEN, feed.next()).await {
            let sent = event.properties.timestamp().unwrap_or_default();
            let message = properties::incoming(&event.properties, Bytes::from(event.data), false);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if sent > 0 {
                heard.clocks.insert(message.app.clone(), sent.abs_diff(now));
            }
            if let Ok(Event::Worker(beat)) = Event::decode(&message) {
                heard.beats_ms.insert(message.app.clone(), message.timestamp_ms);
                heard.workers.insert(message.app, beat);
            }
        }
        heard
    }
}

impl Heard {
    pub(super) fn findings(&self, standing: &Standing) -> Vec<Finding> {
        let sink = standing.queue(QueueRole::Results).map(|(waiting, consumers)| {
            let found = format!("consumers of results: {consumers}, results that wait: {waiting}");
            match consumers {
                0 => Finding::warning("sink", found).hint("start a sink on this lane; results wait for it"),
                _ => Finding::ok("sink", found),
            }
        });
        let found = [sink, self.taking(standing), Some(self.clock())].into_iter().flatten();
        found.chain(self.held()).collect()
    }

    /// The tasks that have held a slot for [`HELD_LONG`] or longer, the longest first.
    fn held(&self) -> Vec<Finding> {
        const CHECK: &str = "slots";
        let held = self.workers.iter().flat_map(|(app, beat)| {
            let at_ms = self.beats_ms.get(app).copied().unwrap_or_default();
            beat.running.iter().map(move |task| (task, &beat.worker, at_ms))
        });
        let mut held: Vec<_> = held.filter(|(task, _, at_ms)| task.age(*at_ms) >= HELD_LONG).collect();
        held.sort_by_key(|(task, _, at_ms)| Reverse(task.age(*at_ms)));
        let more = held.len().saturating_sub(HELD_SHOWN);
        let named = held.iter().take(HELD_SHOWN).map(|(task, worker, at_ms)| {
            let found = task.describe(worker, *at_ms);
            match (task.stuck, task.stopped) {
                (false, false) => Finding::ok(CHECK, found),
                (false, true) => Finding::warning(CHECK, found)
                    .hint("the worker gives the slot another thread after its --stop-grace"),
                (true, _) => Finding::warning(CHECK, found).hint(
                    "call cx.check() in the job; with more such threads than slots the worker ends with code 5",
                ),
            }
        });
        let more = (more > 0).then(|| Finding::ok(CHECK, format_args!("{more} more tasks hold a slot")));
        named.chain(more).collect()
    }

    /// Who takes tasks, and what waits. Every worker takes from all tasks queues, so that they are alike in all but that.
    fn taking(&self, standing: &Standing) -> Option<Finding> {
        const CHECK: &str = "workers";
        let shards: Vec<_> =
            standing.shards().queues().filter_map(|shard| Some((shard, standing.queue(shard)?))).collect();
        let (_, (_, most)) = shards.iter().max_by_key(|(_, (_, consumers))| *consumers)?;
        let slots: u32 = self.workers.values().map(|beat| beat.slots).sum();
        let busy: u32 = self.workers.values().map(|beat| beat.busy).sum();
        let heard = match self.deaf {
            true => "not listened".into(),
            false => format!("heard: {}, with {slots} slots, {busy} of them busy", self.workers.len()),
        };
        let waiting: u32 = shards.iter().map(|(_, (waiting, _))| waiting).sum();
        let again = standing.waiting(QueueRole::ALL.into_iter().filter(|role| is_tried_again(*role)));
        let suspects = standing.waiting([QueueRole::Suspect]);
        let shown = |count: Option<u32>| count.map_or("not shown".into(), |count| count.to_string());
        let found = format!(
            "consumers of tasks: {most}, batches that wait: {waiting}, to be tried again: {}, suspects: {}; {heard}",
            shown(again),
            shown(suspects)
        );
        let left = shards.iter().filter(|(_, (_, consumers))| *consumers == 0);
        let left: Vec<_> = left.map(|(shard, _)| standing.name(*shard)).collect();
        Some(if *most == 0 {
            Finding::warning(CHECK, found).hint("start a worker on this lane; tasks wait for it")
        } else if left.is_empty() {
            Finding::ok(CHECK, found)
        } else {
            Finding::problem(CHECK, format_args!("{found}; nobody takes from {}", left.join(", "))).hint(
                "start the workers again: each takes from the tasks queues that are there when it starts",
            )
        })
    }

    fn clock(&self) -> Finding {
        match self.clocks.iter().max_by_key(|(_, apart)| **apart) {
            None => Finding::unseen("clock", "no process was heard whose clock could be compared"),
            Some((app, apart)) if *apart > CLOCK_TOLERANCE_S => {
                Finding::warning("clock", format_args!("that of {app} is {apart} s from this machine's"))
                    .hint("set both by NTP; nothing is lost by it, but times and ages are wrong")
            }
            Some(_) => {
                let heard = self.clocks.len();
                Finding::ok("clock", format_args!("those heard ({heard}) agree with this machine's"))
            }
        }
    }
}

/// Whether what waits there has failed before or was handed back.
fn is_tried_again(role: QueueRole) -> bool {
    matches!(role, QueueRole::Retry(_) | QueueRole::Again)
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{JobId, TaskIndex, wire::RunningTask};

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn tasks_that_hold_slots_for_long_are_named() {
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
            let beat = WorkerBeat { worker, lane, slots: 1, busy: 1, done: 0, errors: 0, running };
            let workers = BTreeMap::from([("mill-1".to_owned(), beat)]);
            Heard { workers, beats_ms: BTreeMap::from([("mill-1".to_owned(), 60_000)]), ..Heard::default() }
        };
        let found = heard(vec![task(50_000, false), task(50_001, false), task(1_000, true)]).held();
        let verdicts: Vec<_> = found.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Warning, Verdict::Ok], "{found:?}");
        assert!(found[0].found.contains("for 59s; the job has ended"), "{found:?}");
        let many = heard((0..HELD_SHOWN as u64 + 3).map(|ms| task(ms, false)).collect()).held();
        assert_eq!(many.last().unwrap().found, "3 more tasks hold a slot");
    }

    #[test]
    fn a_clock_that_is_off_is_named() {
        let clocks = BTreeMap::from([("worker-1".to_owned(), 1), ("worker-2".to_owned(), 60)]);
        let found = Heard { clocks, ..Heard::default() }.clock();
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.found.contains("worker-2 is 60 s"), "{found:?}");
        assert_eq!(Heard::default().clock().verdict, Verdict::Unseen);
    }
}
