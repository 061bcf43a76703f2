//! Preparing: the state of a job in one process, opened by the first batch that needs it.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::catch;
use crate::{State, TaskError, Trouble};

/// Pause after a failed `prepare`, in which further batches are not run: as long as the shortest wait
/// of a task that is tried again. A queue full of batches asks a server that is down once a second.
const PREPARE_PAUSE: Duration = Duration::from_secs(1);

/// The state of one job. The first batch opens it; those that come meanwhile wait for that.
#[derive(Default)]
pub(super) struct StateCell(Mutex<Prepared>);

#[derive(Default)]
enum Prepared {
    #[default]
    Not,
    Failed {
        trouble: Trouble,
        at: Instant,
    },
    Ready(State),
}

/// The reason why there is no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoState {
    /// `prepare` failed, or refused the job less than [`PREPARE_PAUSE`] ago: the tasks fail.
    Failed(Trouble),
    /// `prepare` failed less than [`PREPARE_PAUSE`] ago: the tasks are not to blame for another try.
    Paused(String),
}

impl StateCell {
    /// Returns the state; `prepare` opens it if it is not there yet. `at_once` passes over the
    /// pause after a failure.
    ///
    /// # Errors
    /// The reason why it could not be opened, now or before; a panic is an error too.
    pub(super) fn open(
        &self,
        prepare: impl FnOnce() -> Result<State, TaskError>,
        at_once: bool,
    ) -> Result<State, NoState> {
        // User code runs under this lock, whose holders all belong to this job; its panics are
        // caught.
        let mut prepared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*prepared {
            Prepared::Ready(state) => return Ok(state.clone()),
            Prepared::Failed { trouble, at } if !at_once && at.elapsed() < PREPARE_PAUSE => {
                return Err(match trouble {
                    Trouble::Failed(reason) | Trouble::Delayed(reason, _) => NoState::Paused(reason.clone()),
                    trouble => NoState::Failed(trouble.clone()),
                });
            }
            Prepared::Failed { .. } | Prepared::Not => {}
        }
        let opened = catch(prepare)
            .unwrap_or_else(|panic| Err(TaskError::failed(format_args!("panic: {panic}"))))
            .map_err(|error| error.context("preparing the job's state").into_trouble());
        *prepared = match &opened {
            Ok(state) => Prepared::Ready(state.clone()),
            Err(trouble) => Prepared::Failed { trouble: trouble.clone(), at: Instant::now() },
        };
        opened.map_err(NoState::Failed)
    }
}

impl fmt::Debug for StateCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateCell").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(text: &str) -> Option<NoState> {
        Some(NoState::Failed(Trouble::Failed(format!("preparing the job's state: {text}"))))
    }

    #[test]
    fn state_is_opened_once() {
        let cell = StateCell::default();
        let first = cell.open(|| Ok(State::new(7_u32)), false).unwrap();
        let second = cell.open(|| unreachable!("it is there"), false).unwrap();
        assert!(std::ptr::eq(first.get::<u32>().unwrap(), second.get::<u32>().unwrap()));
    }

    #[test]
    fn rejected_job_fails_during_the_pause_too() {
        let cell = StateCell::default();
        let rejected = NoState::Failed(Trouble::Rejected("preparing the job's state: no such model".into()));
        let first = cell.open(|| Err(TaskError::reject("no such model")), false);
        assert_eq!(first.err(), Some(rejected.clone()));
        assert_eq!(cell.open(|| unreachable!("too early"), false).err(), Some(rejected));
    }

    #[test]
    fn failed_prepare_is_repeated_after_a_pause() {
        let cell = StateCell::default();
        assert_eq!(cell.open(|| Err("no server")?, false).err(), failed("no server"));
        let paused = NoState::Paused("preparing the job's state: no server".into());
        assert_eq!(cell.open(|| unreachable!("too early"), false).err(), Some(paused));
        assert_eq!(cell.open(|| panic!("odd"), true).err(), failed("panic: odd"));
        let long_ago = Instant::now().checked_sub(PREPARE_PAUSE).unwrap();
        *cell.0.lock().unwrap() = Prepared::Failed { trouble: Trouble::TimedOut, at: long_ago };
        assert!(cell.open(|| Ok(State::none()), false).is_ok());
    }
}
