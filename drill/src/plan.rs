//! The plan of a drill: the times, types and targets of its faults, all of which follow from the
//! seed.

use std::{fmt, time::Duration};

use fastrand::Rng;

/// A type of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrillFault {
    /// SIGKILL to a worker.
    WorkerKilled,
    /// SIGSTOP to a worker for longer than the heartbeat.
    WorkerPaused,
    /// SIGTERM to a worker, which starts again.
    WorkerDrained,
    /// One more worker for a while.
    WorkerAdded,
    /// SIGKILL to the sink.
    SinkKilled,
    /// SIGSTOP to the sink for longer than the heartbeat.
    SinkPaused,
    /// SIGTERM to the sink, which starts again.
    SinkDrained,
    /// SIGKILL to the producer, whose job is resumed.
    ProducerKilled,
    /// SIGINT to the producer, whose job is resumed.
    ProducerInterrupted,
    /// SIGKILL to the broker.
    BrokerKilled,
    /// SIGSTOP to the broker, by turns for longer than the heartbeat and too short for it.
    BrokerPaused,
    /// The broker closes every connection.
    ConnectionsClosed,
}

use DrillFault::{
    BrokerKilled, BrokerPaused, ConnectionsClosed, ProducerInterrupted, ProducerKilled, SinkDrained,
    SinkKilled, SinkPaused, WorkerAdded, WorkerDrained, WorkerKilled, WorkerPaused,
};

impl DrillFault {
    /// Every type of fault.
    pub const ALL: [Self; 12] = [
        WorkerKilled,
        WorkerPaused,
        WorkerDrained,
        WorkerAdded,
        SinkKilled,
        SinkPaused,
        SinkDrained,
        ProducerKilled,
        ProducerInterrupted,
        BrokerKilled,
        BrokerPaused,
        ConnectionsClosed,
    ];

    /// Returns its name in the account.
    pub(crate) fn name(self) -> &'static str {
        match self {
            WorkerKilled => "worker killed",
            WorkerPaused => "worker paused",
            WorkerDrained => "worker drained",
            WorkerAdded => "worker added and drained",
            SinkKilled => "sink killed",
            SinkPaused => "sink paused",
            SinkDrained => "sink drained",
            ProducerKilled => "producer killed",
            ProducerInterrupted => "producer interrupted",
            BrokerKilled => "broker killed",
            BrokerPaused => "broker paused",
            ConnectionsClosed => "connections closed",
        }
    }

    /// Returns the time for which its target gets no further fault, so that it is up again when the
    /// next one comes.
    fn recovery_time(self) -> Duration {
        match self {
            BrokerKilled => BROKER_RECOVERY_TIME,
            _ => RECOVERY_TIME,
        }
    }

    /// True if it is done to the broker, which only a private broker suffers.
    fn targets_broker(self) -> bool {
        matches!(self, BrokerKilled | BrokerPaused | ConnectionsClosed)
    }
}

impl fmt::Display for DrillFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The deck from which faults are drawn, shuffled again when it is empty. Each type comes about as
/// often as it is listed, and early.
const FAULT_DECK: [DrillFault; 19] = [
    WorkerKilled,
    WorkerKilled,
    WorkerKilled,
    WorkerPaused,
    WorkerDrained,
    WorkerDrained,
    WorkerAdded,
    SinkKilled,
    SinkKilled,
    SinkPaused,
    SinkDrained,
    ProducerKilled,
    ProducerKilled,
    ProducerInterrupted,
    ProducerInterrupted,
    BrokerKilled,
    BrokerPaused,
    ConnectionsClosed,
    ConnectionsClosed,
];

/// Time between two faults, in ms: short enough that faults meet, long enough that the fleet works
/// in between.
const GAP_MS: std::ops::Range<u64> = 1_000..2_600;
/// Pause of a process, in ms: longer than two heartbeats of 6 s, after which the broker gives its
/// connection up.
const PAUSE_MS: std::ops::Range<u64> = 25_000..28_000;
/// Pause of the broker, in ms, in turn with [`PAUSE_MS`]: too short for a missed heartbeat.
const HICCUP_MS: std::ops::Range<u64> = 2_000..6_000;
/// Length below which a drill never pauses the broker for longer than the heartbeat.
const LONG_DRILL_MIN: Duration = Duration::from_secs(90);
/// Time that an added worker stays, in ms.
const VISIT_MS: std::ops::Range<u64> = 2_000..8_000;
/// Time after which processes are up again after a fault, and the broker after all but a kill.
const RECOVERY_TIME: Duration = Duration::from_secs(4);
/// Time after which a killed broker is up again.
const BROKER_RECOVERY_TIME: Duration = Duration::from_secs(14);

/// A planned fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedFault {
    /// Its time, from the moment the fleet is up.
    pub(crate) at: Duration,
    pub(crate) fault: DrillFault,
    /// The worker that it hits, for faults of workers; counted from 0.
    pub(crate) worker: usize,
    /// Its duration; 0 for faults without one.
    pub(crate) duration: Duration,
}

/// All faults of a drill, in the order of their times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillPlan {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    /// The faults, in the order of their times.
    pub faults: Vec<PlannedFault>,
}

impl DrillPlan {
    /// Plans a drill; the same for the same arguments. `workers` is at least 1.
    pub fn new(seed: u64, length: Duration, workers: usize, own_broker: bool) -> Self {
        let mut builder = PlanBuilder::new(seed, length, workers, own_broker);
        let mut faults = Vec::new();
        let mut at = Duration::ZERO;
        loop {
            at += Duration::from_millis(builder.rng.u64(GAP_MS));
            if at >= length {
                return Self { seed, length, faults };
            }
            faults.extend(builder.next_fault(at));
        }
    }

    /// Returns the number of planned faults of a type.
    pub fn count(&self, fault: DrillFault) -> usize {
        self.faults.iter().filter(|planned| planned.fault == fault).count()
    }
}

impl fmt::Display for PlannedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7.1} s  {}", self.at.as_secs_f64(), self.fault)?;
        if matches!(self.fault, WorkerKilled | WorkerPaused | WorkerDrained) {
            write!(f, ", number {}", self.worker + 1)?;
        }
        match self.duration {
            Duration::ZERO => Ok(()),
            duration => write!(f, ", for {:.1} s", duration.as_secs_f64()),
        }
    }
}

/// Draws faults that fit: on a target that has recovered from the last one, and over before the
/// drill is.
struct PlanBuilder {
    rng: Rng,
    length: Duration,
    cards: Vec<DrillFault>,
    deck: Vec<DrillFault>,
    /// The time from which each worker may get its next fault.
    workers: Vec<Duration>,
    sink: Duration,
    producer: Duration,
    broker: Duration,
    long_pause_next: bool,
}

impl PlanBuilder {
    fn new(seed: u64, length: Duration, workers: usize, own_broker: bool) -> Self {
        let cards = FAULT_DECK.into_iter().filter(|fault| own_broker || !fault.targets_broker()).collect();
        Self {
            rng: Rng::with_seed(seed),
            length,
            cards,
            deck: Vec::new(),
            workers: vec![Duration::ZERO; workers],
            sink: Duration::ZERO,
            producer: Duration::ZERO,
            broker: Duration::ZERO,
            long_pause_next: true,
        }
    }

    /// Returns the first fault in the deck that fits at this time, if one does. Others stay in the
    /// deck.
    fn next_fault(&mut self, at: Duration) -> Option<PlannedFault> {
        self.take_fitting(at).or_else(|| {
            if self.deck.len() < self.cards.len() {
                let mut fresh = self.cards.clone();
                self.rng.shuffle(&mut fresh);
                self.deck.extend(fresh);
            }
            self.take_fitting(at)
        })
    }

    fn take_fitting(&mut self, at: Duration) -> Option<PlannedFault> {
        let free: Vec<_> = (0..self.workers.len()).filter(|worker| self.workers[*worker] <= at).collect();
        let worker = self.rng.choice(free).unwrap_or(0);
        for place in 0..self.deck.len() {
            let fault = self.deck[place];
            let planned = PlannedFault { at, fault, worker, duration: self.draw_duration(fault) };
            let end = at + planned.duration;
            if *self.target(&planned) > at || end > self.length {
                continue;
            }
            self.deck.remove(place);
            self.long_pause_next ^= fault == BrokerPaused;
            // No process is replaced while the broker is away.
            let broker = if fault.targets_broker() { Duration::ZERO } else { self.broker };
            *self.target(&planned) = broker.max(end + fault.recovery_time());
            return Some(planned);
        }
        None
    }

    fn draw_duration(&mut self, fault: DrillFault) -> Duration {
        let range = match fault {
            WorkerPaused | SinkPaused => PAUSE_MS,
            BrokerPaused if self.long_pause_next && self.length >= LONG_DRILL_MIN => PAUSE_MS,
            BrokerPaused => HICCUP_MS,
            WorkerAdded => VISIT_MS,
            _ => return Duration::ZERO,
        };
        Duration::from_millis(self.rng.u64(range))
    }

    /// Returns the time from which the fault's target is free. An added worker is always new, and
    /// waits only for the broker.
    fn target(&mut self, planned: &PlannedFault) -> &mut Duration {
        match planned.fault {
            WorkerKilled | WorkerPaused | WorkerDrained => &mut self.workers[planned.worker],
            SinkKilled | SinkPaused | SinkDrained => &mut self.sink,
            ProducerKilled | ProducerInterrupted => &mut self.producer,
            WorkerAdded | BrokerKilled | BrokerPaused | ConnectionsClosed => &mut self.broker,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64, seconds: u64) -> DrillPlan {
        DrillPlan::new(seed, Duration::from_secs(seconds), 3, true)
    }

    /// The same seed gives the same faults, and another one gives others.
    #[test]
    fn faults_follow_from_the_seed() {
        assert_eq!(plan(7, 120), plan(7, 120));
        assert_ne!(plan(7, 120).faults, plan(8, 120).faults);
    }

    /// Two minutes have at least forty faults, and every type.
    #[test]
    fn two_minutes_have_every_fault() {
        for seed in 0..100 {
            let plan = plan(seed, 120);
            assert!(plan.faults.len() >= 40, "seed {seed}: {}", plan.faults.len());
            for fault in DrillFault::ALL {
                assert!(plan.count(fault) >= 1, "seed {seed}: no {fault}");
            }
        }
    }

    #[test]
    fn half_a_minute_has_six_types() {
        for seed in 0..100 {
            let plan = plan(seed, 30);
            let types = DrillFault::ALL.iter().filter(|fault| plan.count(**fault) > 0).count();
            assert!(types >= 6, "seed {seed}: {types} types");
        }
    }

    /// Every fault is over before the drill, and pauses outlast the heartbeat.
    #[test]
    fn faults_end_before_the_drill() {
        for seed in 0..100 {
            let plan = plan(seed, 120);
            for planned in &plan.faults {
                assert!(planned.at + planned.duration <= plan.length, "seed {seed}: {planned}");
                if matches!(planned.fault, WorkerPaused | SinkPaused) {
                    assert!(planned.duration >= Duration::from_secs(25), "seed {seed}: {planned}");
                }
            }
            assert!(plan.faults.is_sorted_by_key(|planned| planned.at));
        }
    }

    #[test]
    fn given_broker_has_no_faults() {
        let plan = DrillPlan::new(7, Duration::from_secs(600), 1, false);
        assert!(plan.faults.len() > 100 && plan.faults.iter().all(|planned| !planned.fault.targets_broker()));
    }
}
