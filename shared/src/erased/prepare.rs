//! The state of a job in one process, opened by the first batch that needs it.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::catch;
use crate::{FailureKind, State, TaskError};

/// The pause after a failed `prepare` during which further batches are not run. It equals the
/// shortest retry delay of a task, so a queue full of batches calls a server that is down once a
/// second.
const PREPARE_PAUSE: Duration = Duration::from_secs(1);

/// The state of one job. The first batch opens it; batches that arrive meanwhile wait.
#[derive(Default)]
pub(super) struct StateCell(Mutex<PrepareStatus>);

#[derive(Default)]
enum PrepareStatus {
    #[default]
    NotOpened,
    Failed {
        trouble: FailureKind,
        at: Instant,
    },
    Ready(State),
}

/// The reason why there is no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PrepareError {
    /// `prepare` failed now, or rejected the job less than [`PREPARE_PAUSE`] ago: the tasks fail.
    Failed(FailureKind),
    /// `prepare` failed less than [`PREPARE_PAUSE`] ago: the tasks wait at no cost.
    Paused(String),
}

impl StateCell {
    /// Returns the state; calls `prepare` if it is not open yet. `at_once` skips the pause after a
    /// failure.
    ///
    /// # Errors
    /// The reason why the state could not be opened, now or before. A panic is an error too.
    pub(super) fn open(
        &self,
        prepare: impl FnOnce() -> Result<State, TaskError>,
        at_once: bool,
    ) -> Result<State, PrepareError> {
        // User code runs under this lock. Only batches of this job hold it, and panics are caught.
        let mut prepared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*prepared {
            PrepareStatus::Ready(state) => return Ok(state.clone()),
            PrepareStatus::Failed { trouble, at } if !at_once && at.elapsed() < PREPARE_PAUSE => {
                return Err(match trouble {
                    FailureKind::Failed(reason) | FailureKind::Delayed(reason, _) => {
                        PrepareError::Paused(reason.clone())
                    }
                    trouble => PrepareError::Failed(trouble.clone()),
                });
            }
            PrepareStatus::Failed { .. } | PrepareStatus::NotOpened => {}
        }
        let opened = catch(prepare)
            .unwrap_or_else(|panic| Err(TaskError::failed(format_args!("panic: {panic}"))))
            .map_err(|error| error.context("preparing the job's state").into_kind());
        *prepared = match &opened {
            Ok(state) => PrepareStatus::Ready(state.clone()),
            Err(trouble) => PrepareStatus::Failed { trouble: trouble.clone(), at: Instant::now() },
        };
        opened.map_err(PrepareError::Failed)
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

    fn failed(text: &str) -> Option<PrepareError> {
        Some(PrepareError::Failed(FailureKind::Failed(format!("preparing the job's state: {text}"))))
    }

    #[test]
    fn prepare_runs_once() {
        let cell = StateCell::default();
        let first = cell.open(|| Ok(State::new(7_u32)), false).unwrap();
        let second = cell.open(|| unreachable!("it is there"), false).unwrap();
        assert!(std::ptr::eq(first.get::<u32>().unwrap(), second.get::<u32>().unwrap()));
    }

    #[test]
    fn rejected_job_fails_during_pause() {
        let cell = StateCell::default();
        let rejected =
            PrepareError::Failed(FailureKind::Rejected("preparing the job's state: no such model".into()));
        let first = cell.open(|| Err(TaskError::reject("no such model")), false);
        assert_eq!(first.err(), Some(rejected.clone()));
        assert_eq!(cell.open(|| unreachable!("too early"), false).err(), Some(rejected));
    }

    #[test]
    fn failed_prepare_retries_after_pause() {
        let cell = StateCell::default();
        assert_eq!(cell.open(|| Err("no server")?, false).err(), failed("no server"));
        let paused = PrepareError::Paused("preparing the job's state: no server".into());
        assert_eq!(cell.open(|| unreachable!("too early"), false).err(), Some(paused));
        assert_eq!(cell.open(|| panic!("odd"), true).err(), failed("panic: odd"));
        let long_ago = Instant::now().checked_sub(PREPARE_PAUSE).unwrap();
        *cell.0.lock().unwrap() = PrepareStatus::Failed { trouble: FailureKind::TimedOut, at: long_ago };
        assert!(cell.open(|| Ok(State::none()), false).is_ok());
    }
}
