//! How the broker has been to this process, as metrics.

use std::time::{Duration, Instant};

use gristmill_shared::{
    Health,
    meter::{BROKER_AWAY, BROKER_BLOCKED, BROKER_RECONNECTS, BROKER_STATE},
};

/// How the broker is, and was.
#[derive(Debug)]
pub(super) struct Weather {
    /// Nothing while a first connection is made.
    now: Option<Health>,
    /// What this process has yet to do before it is ready, once the broker works.
    to_do: Option<&'static str>,
    since: Instant,
    blocked: Duration,
    away: Duration,
}

const STATES: [&str; 6] = ["connecting", "well", "blocked", "interrupted", "away", "closed"];

impl Weather {
    pub(super) fn new(now: Instant) -> Self {
        Self { now: None, to_do: None, since: now, blocked: Duration::ZERO, away: Duration::ZERO }
    }

    /// It is this from now on.
    pub(super) fn turn(&mut self, health: Health, now: Instant) {
        let back = matches!(health, Health::Well | Health::Blocked(_) | Health::Interrupted(_));
        if back && matches!(self.now, Some(Health::Away(_))) {
            BROKER_RECONNECTS.add([], 1);
        }
        self.pass(now);
        self.now = Some(health);
    }

    /// Not ready, for this reason, however the broker is; with none, as ready as the broker is.
    pub(super) fn wait_for(&mut self, to_do: Option<&'static str>) {
        self.to_do = to_do;
    }

    /// Counts what there is to count, up to now.
    pub(super) fn count(&mut self, now: Instant) {
        self.pass(now);
        for state in STATES {
            BROKER_STATE.set([state], f64::from(u8::from(state == self.state())));
        }
        BROKER_BLOCKED.reach([], self.blocked.as_secs());
        BROKER_AWAY.reach([], self.away.as_secs());
    }

    /// Why this process is not ready, if it is not.
    pub(super) fn trouble(&self) -> Option<String> {
        match &self.now {
            None => Some("the broker is not connected yet".into()),
            Some(Health::Well) => self.to_do.map(Into::into),
            Some(Health::Blocked(why)) => Some(format!("the broker takes no messages: {why}")),
            Some(Health::Interrupted(why)) => Some(format!("the broker does not deliver: {why}")),
            Some(Health::Away(why)) => Some(format!("the connection to the broker is lost: {why}")),
            Some(Health::Closed) => Some("the broker was given up".into()),
        }
    }

    fn state(&self) -> &'static str {
        match &self.now {
            None => "connecting",
            Some(Health::Well) => "well",
            Some(Health::Blocked(_)) => "blocked",
            Some(Health::Interrupted(_)) => "interrupted",
            Some(Health::Away(_)) => "away",
            Some(Health::Closed) => "closed",
        }
    }

    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        match self.now {
            Some(Health::Blocked(_)) => self.blocked += passed,
            Some(Health::Away(_)) => self.away += passed,
            None | Some(Health::Well | Health::Interrupted(_) | Health::Closed) => {}
        }
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::recorder::Book;

    #[test]
    fn outages_are_counted_while_they_last_and_when_they_end() {
        let book = Book::of("worker");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        metrics::with_local_recorder(&book, || {
            let mut weather = Weather::new(start);
            weather.wait_for(Some("the table is not laid"));
            assert!(weather.trouble().is_some_and(|why| why.contains("not connected")));
            weather.turn(Health::Well, at(1));
            assert_eq!(weather.trouble().as_deref(), Some("the table is not laid"));
            weather.wait_for(None);
            assert_eq!(weather.trouble(), None);
            weather.turn(Health::Interrupted("no queue".into()), at(1));
            assert!(weather.trouble().is_some_and(|why| why.contains("no queue")));
            weather.turn(Health::Blocked("low on memory".into()), at(2));
            assert!(weather.trouble().is_some_and(|why| why.contains("low on memory")));
            weather.turn(Health::Away("gone".into()), at(5));
            assert!(weather.trouble().is_some_and(|why| why.contains("gone")));
            weather.count(at(9));
            let text = book.to_string();
            for line in [
                "gristmill_broker_state{state=\"away\"} 1",
                "gristmill_broker_state{state=\"well\"} 0",
                "gristmill_broker_blocked_seconds_total 3",
                "gristmill_broker_away_seconds_total 4",
                "gristmill_broker_reconnects_total 0",
            ] {
                assert!(text.lines().any(|other| other == line), "{line}: {text}");
            }
            weather.turn(Health::Well, at(10));
            weather.count(at(20));
            let text = book.to_string();
            assert!(text.contains("gristmill_broker_away_seconds_total 5\n"), "{text}");
            assert!(text.contains("gristmill_broker_reconnects_total 1\n"), "{text}");
        });
    }
}
