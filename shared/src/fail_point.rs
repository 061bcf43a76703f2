//! Places at which a test lets a process die or freeze: between publish, confirm, ack and commit.
//!
//! They exist with the feature `fail-points` only, which the end-to-end tests turn on. Without it nothing of this is in
//! a program: [`reached`] and [`arm`] are empty.

/// A place in the life of a task, a result or a fact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailPoint {
    /// RabbitMQ's transport, in any role: messages for queues are written to the broker, and no confirm was read.
    Sent,
    /// Producer: batches are confirmed; how far it got is not saved.
    ProducerConfirmed,
    /// Producer: every task is confirmed; the cursor knows of no seal.
    ProducerSplit,
    /// Producer: the cursor is sealed; the sink was not told.
    ProducerSealed,
    /// Worker: tasks have outcomes; nothing of them is published.
    WorkerRan,
    /// Worker: the outcomes are confirmed; their batch is not acked.
    WorkerStored,
    /// Sink: results are folded; nothing of them is committed.
    SinkFolded,
    /// Sink: results are committed; they are not acked, and what follows from them is not published.
    SinkCommitted,
    /// Sink: what follows is committed and the results are acked; it is not published.
    SinkTelling,
}

#[cfg(not(feature = "fail-points"))]
mod unarmed {
    use super::FailPoint;

    /// Without the feature `fail-points`: nothing.
    #[inline(always)]
    pub const fn reached(_: FailPoint) {}

    /// Without the feature `fail-points`: nothing; the variable is not looked up.
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

    /// The environment variable that arms one fail point, as [`Fault`] writes itself.
    pub const VARIABLE: &str = "GRISTMILL_FAIL_POINT";

    /// What happens to the process.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Action {
        /// It is gone at once, with nothing flushed, closed or dropped: as by `kill -9`.
        Abort,
        /// It freezes, until somebody sends it SIGCONT.
        Stop,
    }

    /// What happens where, and when.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Fault {
        /// Where.
        pub point: FailPoint,
        /// When it is reached for this time; 1 is the first.
        pub time: u32,
        /// What.
        pub action: Action,
    }

    impl fmt::Display for Fault {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?} {} {:?}", self.point, self.time, self.action)
        }
    }

    impl Fault {
        const POINTS: [FailPoint; 9] = [
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

        /// What the process says on stderr when it happens.
        #[must_use]
        pub fn evidence(&self) -> String {
            format!("fail point reached: {self}")
        }

        fn read(text: &str) -> Option<Self> {
            let mut words = text.split(' ');
            let (point, time, action) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
            let all = Self::POINTS
                .into_iter()
                .flat_map(|point| [Action::Abort, Action::Stop].map(|action| Self { point, time, action }));
            all.into_iter()
                .find(|fault| format!("{:?} {:?}", fault.point, fault.action) == format!("{point} {action}"))
        }

        fn happen(&self) {
            // Nobody is left to tell if stderr is closed.
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

    static ARMED: OnceLock<Fault> = OnceLock::new();
    static TIMES: AtomicU32 = AtomicU32::new(0);

    /// Called by the front door before anything else, which alone may look at the environment.
    ///
    /// # Panics
    /// If the variable is no [`Fault`]: its test would show nothing.
    pub fn arm(variable: impl FnOnce(&str) -> Option<String>) {
        if let Some(text) = variable(VARIABLE) {
            let fault = Fault::read(&text).unwrap_or_else(|| panic!("{VARIABLE}={text} is no fault"));
            let _ = ARMED.set(fault); // a process is armed once
        }
    }

    /// The process is at this place. Blocks while it is frozen.
    pub fn reached(point: FailPoint) {
        if let Some(fault) = ARMED.get().filter(|fault| fault.point == point)
            && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == fault.time
        {
            fault.happen();
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_fault_is_read_as_it_is_written() {
            for point in Fault::POINTS {
                let fault = Fault { point, time: 3, action: Action::Stop };
                assert_eq!(Fault::read(&fault.to_string()), Some(fault));
            }
            assert_eq!(Fault::read("WorkerRan 1 Explode"), None);
            assert_eq!(Fault::read("Nowhere 1 Abort"), None);
        }
    }
}
#[cfg(feature = "fail-points")]
pub use armed::{Action, Fault, VARIABLE, arm, reached};
