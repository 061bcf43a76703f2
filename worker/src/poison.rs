//! Poison detection: the decision on a redelivered batch before any of its tasks runs.
//!
//! A redelivery proves nothing: a worker crash, a lost connection and a restart of the broker look
//! alike. So the first redelivery changes nothing. From the second one on, a batch goes to the
//! suspects in parts, and there in parts again, until a message has one task. Each process runs one
//! suspect at a time. Only such a single task gains a loss.

use std::time::{Duration, Instant};

use gristmill_shared::QueueRole;

/// Deliveries of a batch that may come to nothing before it becomes a suspect.
const TRUSTED_DELIVERIES: u32 = 2;
/// Parts into which a suspect is split at most. A batch of 10,000 tasks is down to one in four
/// steps.
pub(crate) const SUSPECT_MAX_PARTS: usize = 16;
/// Worker crashes after which a task is a failure.
pub(crate) const TASK_MAX_LOSSES: u32 = 3;
/// Time after a reconnect of this process in which redeliveries do not count, because the lost
/// connection is the likelier reason.
const RECONNECT_WINDOW: Duration = Duration::from_secs(30);

/// The decision on a delivered batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PoisonVerdict {
    /// Run the batch as it is.
    Run,
    /// Send the batch to the suspects, in parts.
    Split,
    /// The single task of the batch has crashed a worker; count a loss before it runs again.
    Loss,
}

/// Returns the number of earlier deliveries that count, given the time when this process last lost
/// or regained its own connection.
pub(crate) fn counted_redeliveries(redeliveries: u32, changed_at: Option<Instant>) -> u32 {
    if changed_at.is_some_and(|at| at.elapsed() < RECONNECT_WINDOW) { 0 } else { redeliveries }
}

/// Decides on a batch of `tasks` tasks from this queue after this number of deliveries that count.
pub(crate) fn classify(from: QueueRole, redeliveries: u32, tasks: u32) -> PoisonVerdict {
    match from {
        QueueRole::Suspect if redeliveries == 0 => PoisonVerdict::Run,
        QueueRole::Suspect if tasks <= 1 => PoisonVerdict::Loss,
        QueueRole::Suspect => PoisonVerdict::Split,
        _ if redeliveries < TRUSTED_DELIVERIES => PoisonVerdict::Run,
        _ => PoisonVerdict::Split,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use QueueRole::{Requeued, Suspect, Tasks};

    #[test]
    fn single_suspect_gains_a_loss() {
        for (from, redeliveries, tasks, verdict) in [
            (Tasks, 0, 64, PoisonVerdict::Run),
            (Tasks, 1, 64, PoisonVerdict::Run),
            (Tasks, 2, 64, PoisonVerdict::Split),
            (Requeued, 1, 1, PoisonVerdict::Run),
            (Requeued, 2, 1, PoisonVerdict::Split),
            (Suspect, 0, 4, PoisonVerdict::Run),
            (Suspect, 1, 4, PoisonVerdict::Split),
            (Suspect, 0, 1, PoisonVerdict::Run),
            (Suspect, 1, 1, PoisonVerdict::Loss),
        ] {
            assert_eq!(
                classify(from, redeliveries, tasks),
                verdict,
                "{tasks} of {from:?}, {redeliveries} redeliveries"
            );
        }
    }

    #[test]
    fn reconnect_resets_redeliveries() {
        let now = Instant::now();
        assert_eq!(counted_redeliveries(9, Some(now)), 0);
        assert_eq!(counted_redeliveries(9, None), 9);
        let Some(long_ago) = now.checked_sub(RECONNECT_WINDOW) else { return }; // just booted
        assert_eq!(counted_redeliveries(9, Some(long_ago)), 9);
    }
}
