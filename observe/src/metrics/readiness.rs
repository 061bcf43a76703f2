//! The readiness of a process and the health of its broker, as metrics.

use std::time::{Duration, Instant};

use gristmill_shared::{
    Health,
    metrics::{BROKER_AWAY, BROKER_BLOCKED, BROKER_RECONNECTS, BROKER_STATE},
};

/// The present health of the broker, and the time spent in past outages.
#[derive(Debug)]
pub(super) struct Readiness {
    /// `None` until the first connection is made.
    health: Option<Health>,
    /// The step that the process must still take before it is ready, once the broker works.
    pending_step: Option<&'static str>,
    counted_until: Instant,
    blocked: Duration,
    away: Duration,
}

const STATE_LABELS: [&str; 6] = ["connecting", "well", "blocked", "interrupted", "away", "closed"];

impl Readiness {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            health: None,
            pending_step: None,
            counted_until: now,
            blocked: Duration::ZERO,
            away: Duration::ZERO,
        }
    }

    /// Sets the health from `now` on.
    pub(super) fn set_health(&mut self, health: Health, now: Instant) {
        let back = matches!(health, Health::Ready | Health::Blocked(_) | Health::Degraded(_));
        if back && matches!(self.health, Some(Health::Reconnecting(_))) {
            BROKER_RECONNECTS.add([], 1);
        }
        self.accumulate(now);
        self.health = Some(health);
    }

    /// Sets the reason why the process is not ready, however the broker is; `None` if there is
    /// none.
    pub(super) fn set_pending(&mut self, pending_step: Option<&'static str>) {
        self.pending_step = pending_step;
    }

    /// Updates the metrics up to `now`.
    pub(super) fn update_metrics(&mut self, now: Instant) {
        self.accumulate(now);
        for state in STATE_LABELS {
            BROKER_STATE.set([state], f64::from(u8::from(state == self.state_label())));
        }
        BROKER_BLOCKED.set_total([], self.blocked.as_secs());
        BROKER_AWAY.set_total([], self.away.as_secs());
    }

    /// Returns the reason why this process is not ready, if it is not.
    pub(super) fn not_ready_reason(&self) -> Option<String> {
        match &self.health {
            None => Some("the broker is not connected yet".into()),
            Some(Health::Ready) => self.pending_step.map(Into::into),
            Some(Health::Blocked(why)) => Some(format!("the broker accepts no messages: {why}")),
            Some(Health::Degraded(why)) => Some(format!("the broker does not deliver: {why}")),
            Some(Health::Reconnecting(why)) => Some(format!("the connection to the broker is lost: {why}")),
            Some(Health::Closed) => Some("the broker was given up".into()),
        }
    }

    fn state_label(&self) -> &'static str {
        match &self.health {
            None => "connecting",
            Some(Health::Ready) => "well",
            Some(Health::Blocked(_)) => "blocked",
            Some(Health::Degraded(_)) => "interrupted",
            Some(Health::Reconnecting(_)) => "away",
            Some(Health::Closed) => "closed",
        }
    }

    fn accumulate(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_until);
        match self.health {
            Some(Health::Blocked(_)) => self.blocked += passed,
            Some(Health::Reconnecting(_)) => self.away += passed,
            None | Some(Health::Ready | Health::Degraded(_) | Health::Closed) => {}
        }
        self.counted_until = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::recorder::PrometheusRecorder;

    /// Outages count while they last and stop when they end.
    #[test]
    fn outages_count_until_they_end() {
        let recorder = PrometheusRecorder::for_role("worker");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        metrics::with_local_recorder(&recorder, || {
            let mut readiness = Readiness::new(start);
            readiness.set_pending(Some("the lane is not claimed"));
            assert!(readiness.not_ready_reason().is_some_and(|why| why.contains("not connected")));
            readiness.set_health(Health::Ready, at(1));
            assert_eq!(readiness.not_ready_reason().as_deref(), Some("the lane is not claimed"));
            readiness.set_pending(None);
            assert_eq!(readiness.not_ready_reason(), None);
            readiness.set_health(Health::Degraded("no queue".into()), at(1));
            assert!(readiness.not_ready_reason().is_some_and(|why| why.contains("no queue")));
            readiness.set_health(Health::Blocked("low on memory".into()), at(2));
            assert!(readiness.not_ready_reason().is_some_and(|why| why.contains("low on memory")));
            readiness.set_health(Health::Reconnecting("gone".into()), at(5));
            assert!(readiness.not_ready_reason().is_some_and(|why| why.contains("gone")));
            readiness.update_metrics(at(9));
            let text = recorder.to_string();
            for line in [
                "gristmill_broker_state{state=\"away\"} 1",
                "gristmill_broker_state{state=\"well\"} 0",
                "gristmill_broker_blocked_seconds_total 3",
                "gristmill_broker_away_seconds_total 4",
                "gristmill_broker_reconnects_total 0",
            ] {
                assert!(text.lines().any(|other| other == line), "{line}: {text}");
            }
            readiness.set_health(Health::Ready, at(10));
            readiness.update_metrics(at(20));
            let text = recorder.to_string();
            assert!(text.contains("gristmill_broker_away_seconds_total 5\n"), "{text}");
            assert!(text.contains("gristmill_broker_reconnects_total 1\n"), "{text}");
        });
    }
}
