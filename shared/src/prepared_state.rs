//! The state that a job opens once per worker and shares among its tasks there.

use std::{
    any::{Any, type_name},
    fmt,
    sync::Arc,
};

use crate::TaskError;

/// A value that [`Job::prepare`](crate::Job::prepare) opens for the tasks of a job in one worker: a
/// model, a pool of connections, a table. Tasks read it with
/// [`TaskContext::state`](crate::TaskContext::state), from several threads at a time.
#[derive(Clone, Default)]
pub struct State(Option<TypedValue>);

#[derive(Clone)]
struct TypedValue {
    value: Arc<dyn Any + Send + Sync>,
    type_name: &'static str,
}

impl State {
    /// Returns the empty state, for a job that needs none.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Wraps a value. It is dropped when the job has ended and none of its tasks runs in this
    /// worker any more.
    #[must_use]
    pub fn new<T: Send + Sync + 'static>(value: T) -> Self {
        Self(Some(TypedValue { value: Arc::new(value), type_name: type_name::<T>() }))
    }

    /// Returns the value, if it has this type.
    ///
    /// # Errors
    /// A rejection that names both types, because a retry would fail alike.
    pub(crate) fn get<T: 'static>(&self) -> Result<&T, TaskError> {
        let found = match &self.0 {
            None => "none",
            Some(TypedValue { value, type_name }) => match value.downcast_ref() {
                Some(value) => return Ok(value),
                None => type_name,
            },
        };
        let wanted = type_name::<T>();
        Err(TaskError::reject(format_args!(
            "the task asks for a state of type {wanted}, and the job's is {found} \
             (hint: return State::new of such a value from Job::prepare)"
        )))
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({})", self.0.as_ref().map_or("none", |value| value.type_name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FailureKind;

    #[test]
    fn state_is_read_by_its_type_only() {
        let state = State::new(String::from("seven"));
        assert_eq!(state.get::<String>().unwrap(), "seven");
        for (state, found) in [(state, "alloc::string::String"), (State::none(), "none")] {
            let FailureKind::Rejected(why) = state.get::<u32>().unwrap_err().into_kind() else {
                panic!("a retry is pointless")
            };
            assert!(why.contains("of type u32") && why.contains(&format!("is {found}")), "{why}");
        }
    }
}
