//! Which fault comes when and hits whom: all of it follows from the seed.

use std::{fmt, time::Duration};

use fastrand::Rng;

/// What can be done to a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
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
}

use Fault::{
    BrokerKilled, BrokerPaused, ConnectionsClosed, ProducerInterrupted, ProducerKilled, SinkDrained,
    SinkKilled, SinkPaused, WorkerAdded, WorkerDrained, WorkerKilled, WorkerPaused,
};

impl Fault {
    /// Every type of fault.
    pub(crate) const ALL: [Self; 12] = [
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

    /// How it is named in the account.
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

    /// How long its target is left alone afterwards, so that it is up again when the next one comes.
    fn recovery(self) -> Duration {
        match self {
            BrokerKilled => BROKER_RECOVERY,
            _ => RECOVERY,
        }
    }

    /// Whether it is done to the broker, which only a broker of our own may suffer.
    fn is_the_brokers(self) -> bool {
        matches!(self, BrokerKilled | BrokerPaused | ConnectionsClosed)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Faults are dealt from a deck with these cards, shuffled anew when it is empty: so each type comes about as often
/// as it is here, and early.
const DECK: [Fault; 19] = [
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

/// Between two faults, in ms: so short that faults meet, so long that the fleet works in between.
const GAP_MS: std::ops::Range<u64> = 1_000..2_600;
/// For how long a process is paused, in ms: past the heartbeat of 6 s, after two of which the broker gives it up.
const PAUSE_MS: std::ops::Range<u64> = 25_000..28_000;
/// For how long the broker is paused, in ms: a hiccup that no heartbeat notices, by turns with [`PAUSE_MS`].
const HICCUP_MS: std::ops::Range<u64> = 2_000..6_000;
/// Below this a drill has no room for a broker that is paused past the heartbeat.
const LONG_DRILL: Duration = Duration::from_secs(90);
/// For how long an added worker stays, in ms.
const VISIT_MS: std::ops::Range<u64> = 2_000..8_000;
/// Processes are up again so soon after a fault, and the broker after all but one.
const RECOVERY: Duration = Duration::from_secs(4);
/// A broker that was killed takes its time to start.
const BROKER_RECOVERY: Duration = Duration::from_secs(14);

/// A fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    /// When, from the moment the fleet is up.
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    /// Which worker, for faults of workers; counted from 0.
    pub(crate) worker: usize,
    /// How long it lasts; 0 for what happens at once.
    pub(crate) lasts: Duration,
}

/// All faults of a drill, in the order of their times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) faults: Vec<Planned>,
}

impl Plan {
    /// The same for the same arguments. `workers` is at least 1.
    pub(crate) fn new(seed: u64, length: Duration, workers: usize, own_broker: bool) -> Self {
        let mut dealer = Dealer::new(seed, length, workers, own_broker);
        let mut faults = Vec::new();
        let mut at = Duration::ZERO;
        loop {
            at += Duration::from_millis(dealer.rng.u64(GAP_MS));
            if at >= length {
                return Self { seed, length, faults };
            }
            faults.extend(dealer.deal(at));
        }
    }

    /// How many faults of a type are planned.
    pub(crate) fn count(&self, fault: Fault) -> usize {
        self.faults.iter().filter(|planned| planned.fault == fault).count()
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7.1} s  {}", self.at.as_secs_f64(), self.fault)?;
        if matches!(self.fault, WorkerKilled | WorkerPaused | WorkerDrained) {
            write!(f, ", number {}", self.worker + 1)?;
        }
        match self.lasts {
            Duration::ZERO => Ok(()),
            lasts => write!(f, ", for {:.1} s", lasts.as_secs_f64()),
        }
    }
}

/// Deals faults that fit: on a target that has recovered from the last one, and over before the drill is.
struct Dealer {
    rng: Rng,
    length: Duration,
    cards: Vec<Fault>,
    deck: Vec<Fault>,
    /// When each is through with its last fault.
    workers: Vec<Duration>,
    sink: Duration,
    producer: Duration,
    broker: Duration,
    long_pause_next: bool,
}

impl Dealer {
    fn new(seed: u64, length: Duration, workers: usize, own_broker: bool) -> Self {
        let cards = DECK.into_iter().filter(|fault| own_broker || !fault.is_the_brokers()).collect();
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

    /// The first card that fits at this time, if one does. What fits nowhere yet waits in the deck.
    fn deal(&mut self, at: Duration) -> Option<Planned> {
        self.first_that_fits(at).or_else(|| {
            if self.deck.len() < self.cards.len() {
                let mut fresh = self.cards.clone();
                self.rng.shuffle(&mut fresh);
                self.deck.extend(fresh);
            }
            self.first_that_fits(at)
        })
    }

    fn first_that_fits(&mut self, at: Duration) -> Option<Planned> {
        let free: Vec<_> = (0..self.workers.len()).filter(|worker| self.workers[*worker] <= at).collect();
        let worker = self.rng.choice(free).unwrap_or(0);
        for place in 0..self.deck.len() {
            let fault = self.deck[place];
            let planned = Planned { at, fault, worker, lasts: self.lasts(fault) };
            let end = at + planned.lasts;
            if *self.target(&planned) > at || end > self.length {
                continue;
            }
            self.deck.remove(place);
            self.long_pause_next ^= fault == BrokerPaused;
            // Nobody is replaced while the broker is away.
            let broker = if fault.is_the_brokers() { Duration::ZERO } else { self.broker };
            *self.target(&planned) = broker.max(end + fault.recovery());
            return Some(planned);
        }
        None
    }

    fn lasts(&mut self, fault: Fault) -> Duration {
        let range = match fault {
            WorkerPaused | SinkPaused => PAUSE_MS,
            BrokerPaused if self.long_pause_next && self.length >= LONG_DRILL => PAUSE_MS,
            BrokerPaused => HICCUP_MS,
            WorkerAdded => VISIT_MS,
            _ => return Duration::ZERO,
        };
        Duration::from_millis(self.rng.u64(range))
    }

    /// When the fault's target is free again. An added worker is always new: it waits only for the broker.
    fn target(&mut self, planned: &Planned) -> &mut Duration {
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

    fn plan(seed: u64, seconds: u64) -> Plan {
        Plan::new(seed, Duration::from_secs(seconds), 3, true)
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_and_another_gives_others() {
        assert_eq!(plan(7, 120), plan(7, 120));
        assert_ne!(plan(7, 120).faults, plan(8, 120).faults);
    }

    #[test]
    fn two_minutes_are_at_least_forty_faults_and_every_type_comes() {
        for seed in 0..100 {
            let plan = plan(seed, 120);
            assert!(plan.faults.len() >= 40, "seed {seed}: {}", plan.faults.len());
            for fault in Fault::ALL {
                assert!(plan.count(fault) >= 1, "seed {seed}: no {fault}");
            }
        }
    }

    #[test]
    fn half_a_minute_has_six_types() {
        for seed in 0..100 {
            let plan = plan(seed, 30);
            let types = Fault::ALL.iter().filter(|fault| plan.count(**fault) > 0).count();
            assert!(types >= 6, "seed {seed}: {types} types");
        }
    }

    #[test]
    fn every_fault_is_over_before_the_drill_and_pauses_outlast_the_heartbeat() {
        for seed in 0..100 {
            let plan = plan(seed, 120);
            for planned in &plan.faults {
                assert!(planned.at + planned.lasts <= plan.length, "seed {seed}: {planned}");
                if matches!(planned.fault, WorkerPaused | SinkPaused) {
                    assert!(planned.lasts >= Duration::from_secs(25), "seed {seed}: {planned}");
                }
            }
            assert!(plan.faults.is_sorted_by_key(|planned| planned.at));
        }
    }

    #[test]
    fn somebody_elses_broker_suffers_nothing() {
        let plan = Plan::new(7, Duration::from_secs(600), 1, false);
        assert!(plan.faults.len() > 100 && plan.faults.iter().all(|planned| !planned.fault.is_the_brokers()));
    }
}
