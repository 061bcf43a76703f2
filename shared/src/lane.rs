//! The queues of a lane: their roles, their bounds and the message flow between them.
//!
//! ```text
//! producer ──▶ tasks ──▶ worker ──▶ results ──▶ sink
//!                ▲        │   ▲
//!                │        ▼   └── again ◀─┐ (delay expired)
//!                │   retry.1s … retry.10m ┘
//!                └── suspect (tasks that may have killed a worker)     dead (invalid messages)
//! ```
//!
//! `tasks` is one queue or several: the [shards](crate::Shards) of the lane.

use std::{fmt, time::Duration};

use crate::{Lane, RETRY_DELAY_MAX, ShardIndex};

/// The most task batches that may wait in a shard of a lane. A producer that is refused slows down.
pub const TASKS_MAX_MESSAGES: u64 = 1_000;
/// The most bytes of task batches that may wait in a shard of a lane.
pub const TASKS_MAX_BYTES: u64 = 64 << 20;
/// The most bytes of results that may wait for a sink. A worker that is refused publishes again
/// later, and meanwhile runs tasks only up to its bounds for unconfirmed results.
pub const RESULTS_MAX_BYTES: u64 = 256 << 20;

/// A queue of a lane. Displays as its name on the broker.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Queue {
    /// The lane it belongs to.
    pub lane: Lane,
    /// Its role in the lane.
    pub role: QueueRole,
}

/// The role of a queue in its lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum QueueRole {
    /// Task batches from producers to workers; the first shard of a lane that has several.
    Tasks,
    /// A further shard of the tasks queue.
    Shard(ShardIndex),
    /// Batches that may have killed their worker. A worker takes one at a time.
    Suspect,
    /// Failed tasks that wait for their next attempt.
    Retry(RetryDelay),
    /// Retries whose delay has expired.
    Requeued,
    /// Results and job-level messages to the sink.
    Results,
    /// Dead letters: messages that are not valid Gristmill messages, with the reason.
    Dead,
}

impl QueueRole {
    /// The queues that every lane has, without further shards. Targets of dead letters come first,
    /// so that the queues can be declared in this order.
    pub const ALL: [Self; 9] = [
        Self::Dead,
        Self::Requeued,
        Self::Tasks,
        Self::Suspect,
        Self::Retry(RetryDelay::Second),
        Self::Retry(RetryDelay::TenSeconds),
        Self::Retry(RetryDelay::Minute),
        Self::Retry(RetryDelay::TenMinutes),
        Self::Results,
    ];

    /// Returns the name of the queue within a lane. Further shards have the same name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tasks | Self::Shard(_) => "tasks",
            Self::Suspect => "suspect",
            Self::Retry(RetryDelay::Second) => "retry.1s",
            Self::Retry(RetryDelay::TenSeconds) => "retry.10s",
            Self::Retry(RetryDelay::Minute) => "retry.1m",
            Self::Retry(RetryDelay::TenMinutes) => "retry.10m",
            Self::Requeued => "again",
            Self::Results => "results",
            Self::Dead => "dead",
        }
    }

    /// Returns the queue with this role in `lane`.
    #[must_use]
    pub fn of(self, lane: &Lane) -> Queue {
        Queue { lane: lane.clone(), role: self }
    }

    /// Returns the properties of the queue.
    #[must_use]
    pub fn spec(self) -> QueueSpec {
        let plain = QueueSpec {
            max_messages: None,
            max_bytes: None,
            delay: None,
            dead_letters_to: None,
            single_active_consumer: false,
        };
        match self {
            Self::Tasks | Self::Shard(_) => QueueSpec {
                max_messages: Some(TASKS_MAX_MESSAGES),
                max_bytes: Some(TASKS_MAX_BYTES),
                dead_letters_to: Some(Self::Dead),
                ..plain
            },
            Self::Suspect | Self::Requeued => QueueSpec { dead_letters_to: Some(Self::Dead), ..plain },
            Self::Retry(delay) => QueueSpec { delay: Some((delay.duration(), Self::Requeued)), ..plain },
            Self::Results => {
                QueueSpec { max_bytes: Some(RESULTS_MAX_BYTES), single_active_consumer: true, ..plain }
            }
            Self::Dead => plain,
        }
    }
}

/// The properties of a queue, independent of the broker. A full queue rejects new messages; it
/// never drops old ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueSpec {
    /// The number of waiting messages from which on the queue rejects new ones.
    pub max_messages: Option<u64>,
    /// The number of waiting bytes from which on the queue rejects new messages.
    pub max_bytes: Option<u64>,
    /// The time after which a message moves to another queue of the lane, and that queue. Such a
    /// queue has no consumers.
    pub delay: Option<(Duration, QueueRole)>,
    /// The queue for messages that the broker dead-letters.
    pub dead_letters_to: Option<QueueRole>,
    /// True if only one of the consumers gets messages at a time; the next takes over when it ends.
    pub single_active_consumer: bool,
}

/// The steps of the retry ladder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RetryDelay {
    /// 1 s, after the first failure of a task.
    Second,
    /// 10 s, after the second.
    TenSeconds,
    /// 1 min, after the third.
    Minute,
    /// 10 min, after the fourth and all further ones.
    TenMinutes,
}

impl RetryDelay {
    /// Returns the step for a task that has now failed `failures` times in its round.
    #[must_use]
    pub fn after(failures: u32) -> Self {
        match failures {
            0 | 1 => Self::Second,
            2 => Self::TenSeconds,
            3 => Self::Minute,
            _ => Self::TenMinutes,
        }
    }

    /// Every step, the shortest first.
    pub const ALL: [Self; 4] = [Self::Second, Self::TenSeconds, Self::Minute, Self::TenMinutes];

    /// Returns the longest step that is not longer than `delay`, or `None` if `delay` is shorter
    /// than every step.
    #[must_use]
    pub fn within(delay: Duration) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|step| step.duration() <= delay)
    }

    /// Returns the first step of a wait of `delay`, and the time that remains after it. The delay
    /// is rounded up to the whole second, and is at least the shortest step and at most
    /// [`RETRY_DELAY_MAX`].
    #[must_use]
    pub fn first_step(delay: Duration) -> (Self, Duration) {
        let whole = Duration::from_secs(delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)));
        let whole = whole.min(RETRY_DELAY_MAX);
        let step = Self::within(whole).unwrap_or(Self::Second);
        (step, whole.saturating_sub(step.duration()))
    }

    /// Returns the time that a task waits on this step.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::TenSeconds => 10,
            Self::Minute => 60,
            Self::TenMinutes => 600,
        })
    }
}

impl fmt::Display for RetryDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Second => "1s",
            Self::TenSeconds => "10s",
            Self::Minute => "1m",
            Self::TenMinutes => "10m",
        })
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gristmill.{}.{}", self.lane, self.role.as_str())?;
        match self.role {
            QueueRole::Shard(number) => write!(f, ".{number}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_match_the_docs() {
        let names: Vec<_> = QueueRole::ALL.iter().map(|role| role.of(&Lane::default()).to_string()).collect();
        let expected = "dead again tasks suspect retry.1s retry.10s retry.1m retry.10m results";
        let expected: Vec<_> = expected.split(' ').map(|name| format!("gristmill.default.{name}")).collect();
        assert_eq!(names, expected);
    }

    /// A message that the broker moves never meets a bounded queue.
    #[test]
    fn broker_moves_to_unbounded_queues() {
        // A full target would reject the moved message, and no publisher would get the rejection.
        for role in QueueRole::ALL {
            let spec = role.spec();
            for target in spec.delay.map(|(_, to)| to).into_iter().chain(spec.dead_letters_to) {
                assert_eq!((target.spec().max_messages, target.spec().max_bytes), (None, None), "{role:?}");
            }
        }
    }

    #[test]
    fn delay_splits_into_ladder_steps() {
        let steps = |delay: Duration| {
            let (mut step, mut rest) = RetryDelay::first_step(delay);
            let mut steps = vec![step];
            while let Some(next) = RetryDelay::within(rest) {
                (step, rest) = (next, rest - next.duration());
                steps.push(step);
            }
            assert_eq!(rest, Duration::ZERO, "whole seconds leave no rest");
            steps
        };
        use RetryDelay::{Minute, Second, TenMinutes, TenSeconds};
        for (millis, expected) in [
            (0, vec![Second]),
            (300, vec![Second]),
            (1_000, vec![Second]),
            (1_001, vec![Second, Second]),
            (10_000, vec![TenSeconds]),
            (73_000, vec![Minute, TenSeconds, Second, Second, Second]),
            (600_000, vec![TenMinutes]),
        ] {
            assert_eq!(steps(Duration::from_millis(millis)), expected, "{millis} ms");
        }
        assert_eq!(steps(Duration::MAX), vec![TenMinutes; 144], "a bounded number of messages");
        assert_eq!(steps(RETRY_DELAY_MAX - Duration::from_secs(1)).len(), 143 + 9 + 5 + 9);
    }

    #[test]
    fn retry_ladder_ends_at_ten_minutes() {
        let steps: Vec<_> =
            (1..=6).map(|failures| RetryDelay::after(failures).duration().as_secs()).collect();
        assert_eq!(steps, [1, 10, 60, 600, 600, 600]);
    }
}
