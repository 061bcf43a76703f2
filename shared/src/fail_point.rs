//! Fail points: places between publish, confirm, ack and commit at which a test aborts or freezes a
//! process.
//!
//! They exist only with the feature `fail-points`, which the end-to-end tests enable. Without it
//! [`reached`] and [`arm`] are empty.

/// A place in the life of a task, a result or a fact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailPoint {
    /// RabbitMQ's transport, in any role: messages for queues are written to the broker, and no
    /// confirm is read.
    Sent,
    /// Producer: batches are confirmed; the cursor is not saved.
    ProducerConfirmed,
    /// Producer: every task is confirmed; the cursor has no seal.
    ProducerSplit,
    /// Producer: the cursor is sealed; the seal is not published.
    ProducerSealed,
    /// Worker: tasks have outcomes; none of them is published.
    WorkerRan,
    /// Worker: the outcomes are confirmed; their batch is not acked.
    WorkerStored,
    /// Sink: results are folded; none of them is committed.
    SinkFolded,
    /// Sink: results are committed; they are not acked, and their outbox messages are not
    /// published.
    SinkCommitted,
    /// Sink: outbox messages are committed and the results are acked; the messages are not
    /// published.
    SinkTelling,
}

#[cfg(not(feature = "fail-points"))]
mod unarmed {
    use super::FailPoint;

    /// Does nothing without the feature `fail-points`.
    #[inline(always)]
    pub const fn reached(_: FailPoint) {}

    /// Does nothing without the feature `fail-points`; the variable is not read.
    #[inline(always)]
    pub fn arm(_: impl FnOnce(&str) -> Option<String>) {}
}
#[cfg(not(feature = "fail-points"))]
pub use unarmed::{arm, reached};

#[cfg(feature = "fail-points")]
mod armed {
    use std::{
        fmt,
        io::Write as _,
        process::{Command, abort},
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::FailPoint;

    /// The environment variable that arms one fail point. Its value is the text of a [`Fault`].
    pub const FAIL_POINT_VARIABLE: &str = "GRISTMILL_FAIL_POINT";

    /// The effect of a fault on the process.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Action {
        /// The process ends at once, like `kill -9`: nothing is flushed, closed or dropped.
        Abort,
        /// The process freezes until it receives SIGCONT.
        Stop,
    }

    /// One armed fail point: the place, the count and the action.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Fault {
        /// The place.
        pub point: FailPoint,
        /// The number of the pass at which it acts; 1 is the first.
        pub time: u32,
        /// The effect on the process.
        pub action: Action,
    }

    impl fmt::Display for Fault {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?} {} {:?}", self.point, self.time, self.action)
        }
    }

    impl Fault {
        const ALL_POINTS: [FailPoint; 9] = [
            FailPoint::Sent,
            FailPoint::ProducerConfirmed,
            FailPoint::ProducerSplit,
            FailPoint::ProducerSealed,
            FailPoint::WorkerRan,
            FailPoint::WorkerStored,
            FailPoint::SinkFolded,
            FailPoint::SinkCommitted,
            FailPoint::SinkTelling,
        ];

        /// Returns the line that the process writes to stderr when the fault acts.
        #[must_use]
        pub fn evidence(&self) -> String {
            format!("fail point reached: {self}")
        }

        fn parse(text: &str) -> Option<Self> {
            let mut words = text.split(' ');
            let (point, time, action) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
            let all = Self::ALL_POINTS
                .into_iter()
                .flat_map(|point| [Action::Abort, Action::Stop].map(|action| Self { point, time, action }));
            all.into_iter()
                .find(|fault| format!("{:?} {:?}", fault.point, fault.action) == format!("{point} {action}"))
        }

        fn execute(&self) {
            // If stderr is closed, the line is lost.
            let _ = writeln!(std::io::stderr(), "{}", self.evidence());
            match self.action {
                Action::Abort => abort(),
                Action::Stop => {
                    let pid = std::process::id().to_string();
                    let sent = Command::new("kill").args(["-STOP", &pid]).status();
                    assert!(sent.is_ok_and(|status| status.success()), "kill -STOP did not work");
                }
            }
        }
    }

    static ARMED_FAULT: OnceLock<Fault> = OnceLock::new();
    static REACHED_COUNT: AtomicU32 = AtomicU32::new(0);

    /// Arms the fault that the environment names. The front door, which alone reads the
    /// environment, calls it first.
    ///
    /// # Panics
    /// If the variable is no [`Fault`], because the test would then prove nothing.
    pub fn arm(variable: impl FnOnce(&str) -> Option<String>) {
        if let Some(text) = variable(FAIL_POINT_VARIABLE) {
            let fault =
                Fault::parse(&text).unwrap_or_else(|| panic!("{FAIL_POINT_VARIABLE}={text} is no fault"));
            let _ = ARMED_FAULT.set(fault); // a process is armed once
        }
    }

    /// Executes the armed fault if the process is at its place for the armed time. Blocks while the
    /// process is frozen.
    pub fn reached(point: FailPoint) {
        if let Some(fault) = ARMED_FAULT.get().filter(|fault| fault.point == point)
            && REACHED_COUNT.fetch_add(1, Ordering::Relaxed) + 1 == fault.time
        {
            fault.execute();
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn faults_round_trip_as_text() {
            for point in Fault::ALL_POINTS {
                let fault = Fault { point, time: 3, action: Action::Stop };
                assert_eq!(Fault::parse(&fault.to_string()), Some(fault));
            }
            assert_eq!(Fault::parse("WorkerRan 1 Explode"), None);
            assert_eq!(Fault::parse("Nowhere 1 Abort"), None);
        }
    }
}
#[cfg(feature = "fail-points")]
pub use armed::{Action, FAIL_POINT_VARIABLE, Fault, arm, reached};
