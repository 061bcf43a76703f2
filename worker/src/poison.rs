//! Batches that may have killed their worker: what is done with one before anything of it is run.
//!
//! That a message comes again proves nothing: a crash, a connection that went and a broker's restart look alike. So the
//! first time changes nothing. From the second on a batch goes to the suspects in parts, and there in parts again, until
//! a message has one task; a process runs one suspect at a time. Only such a task alone gains a loss.

use std::time::{Duration, Instant};

use gristmill_shared::QueueRole;

/// So many deliveries may come to nothing before a batch becomes a suspect.
const DELIVERIES_IN_GOOD_FAITH: u32 = 2;
/// Into how many parts a suspect is taken at most. A batch of 10,000 tasks is down to one in four steps.
pub(crate) const SUSPECT_PARTS: usize = 16;
/// A task whose worker died this often is a failure.
pub(crate) const LOSSES_MAX: u32 = 3;
/// When this process has lost its own connection so shortly before, that is the likelier reason.
const RECONNECTED_LATELY: Duration = Duration::from_secs(30);

/// What is done with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It is run as it is.
    Run,
    /// It goes to the suspects, in parts.
    Split,
    /// Its one task has cost a worker its life; counted before it is run again.
    Loss,
}

/// How many of the deliveries before count, by when this process last lost its own connection.
pub(crate) fn that_count(before: u32, reconnected_at: Option<Instant>) -> u32 {
    if reconnected_at.is_some_and(|at| at.elapsed() < RECONNECTED_LATELY) { 0 } else { before }
}

/// The verdict on a batch of `tasks` tasks from this queue, after so many deliveries that count.
pub(crate) fn judge(from: QueueRole, before: u32, tasks: u32) -> Verdict {
    match from {
        QueueRole::Suspect if before == 0 => Verdict::Run,
        QueueRole::Suspect if tasks <= 1 => Verdict::Loss,
        QueueRole::Suspect => Verdict::Split,
        _ if before < DELIVERIES_IN_GOOD_FAITH => Verdict::Run,
        _ => Verdict::Split,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use QueueRole::{Again, Suspect, Tasks};

    #[test]
    fn only_a_single_suspect_gains_a_loss() {
        for (from, before, tasks, verdict) in [
            (Tasks, 0, 64, Verdict::Run),
            (Tasks, 1, 64, Verdict::Run),
            (Tasks, 2, 64, Verdict::Split),
            (Again, 1, 1, Verdict::Run),
            (Again, 2, 1, Verdict::Split),
            (Suspect, 0, 4, Verdict::Run),
            (Suspect, 1, 4, Verdict::Split),
            (Suspect, 0, 1, Verdict::Run),
            (Suspect, 1, 1, Verdict::Loss),
        ] {
            assert_eq!(judge(from, before, tasks), verdict, "{tasks} of {from:?}, {before} before");
        }
    }

    #[test]
    fn who_has_just_lost_its_own_connection_suspects_nobody() {
        let now = Instant::now();
        assert_eq!(that_count(9, Some(now)), 0);
        assert_eq!(that_count(9, None), 9);
        let Some(long_ago) = now.checked_sub(RECONNECTED_LATELY) else { return }; // the machine has just started
        assert_eq!(that_count(9, Some(long_ago)), 9);
    }
}
