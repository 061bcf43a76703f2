//! Splitting of an iterator of tasks into packs of encoded tasks.

use std::fmt;

use serde::Serialize;

use super::catch;
use crate::{
    JobError, SplitDigest, TaskIndex,
    wire::{PackedTasks, TASK_MAX_BYTES},
};

/// A split in progress. Runs on a thread of its own, because it calls user code.
pub trait AnySplit: fmt::Debug + Send {
    /// Appends the next tasks to `tasks` and to `digest` until `limit` is reached or there are no
    /// more tasks.
    ///
    /// # Errors
    /// If the job's iterator yields an error, panics, or yields a task over [`TASK_MAX_BYTES`]. An
    /// error ends the split.
    fn split_into(
        &mut self,
        tasks: &mut PackedTasks,
        digest: &mut SplitDigest,
        limit: BatchLimit,
    ) -> Result<SplitStep, JobError>;
}

/// The size at which a batch is full: either bound is enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchLimit {
    /// Number of tasks.
    pub tasks: u32,
    /// Size of the encoded tasks in bytes. The last task may exceed it.
    pub bytes: usize,
}

/// The reason why a splitting step returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitStep {
    /// The limit was reached.
    Full,
    /// There are no more tasks.
    End,
}

pub(super) struct TypedSplit<I> {
    tasks: I,
    next: TaskIndex,
}

impl<I> TypedSplit<I> {
    pub(super) fn new(tasks: I, next: TaskIndex) -> Self {
        Self { tasks, next }
    }
}

impl<I> fmt::Debug for TypedSplit<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Split(next {})", self.next)
    }
}

impl<T: Serialize, I: Iterator<Item = Result<T, JobError>> + Send> AnySplit for TypedSplit<I> {
    fn split_into(
        &mut self,
        tasks: &mut PackedTasks,
        digest: &mut SplitDigest,
        limit: BatchLimit,
    ) -> Result<SplitStep, JobError> {
        catch(|| {
            while tasks.count() < limit.tasks && tasks.bytes() < limit.bytes {
                let Some(task) = self.tasks.next() else { return Ok(SplitStep::End) };
                let task = task.map_err(|error| failed_at(self.next, &error))?;
                let encoded = tasks.push(&task).map_err(|error| failed_at(self.next, &error))?;
                if encoded.len() > TASK_MAX_BYTES {
                    let size = encoded.len();
                    return Err(failed_at(
                        self.next,
                        &format_args!("it takes {size} bytes, more than {TASK_MAX_BYTES}"),
                    ));
                }
                digest.add(self.next, encoded);
                self.next = self.next.plus(1);
            }
            Ok(SplitStep::Full)
        })
        .unwrap_or_else(|panic| Err(failed_at(self.next, &format_args!("panic: {panic}"))))
    }
}

fn failed_at(index: TaskIndex, why: &dyn fmt::Display) -> JobError {
    JobError::new(format_args!("split failed at task {index}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(tasks: impl Iterator<Item = Result<u64, JobError>> + Send) -> impl AnySplit {
        TypedSplit::new(tasks, TaskIndex(0))
    }

    #[test]
    fn count_or_bytes_fill_a_pack() {
        let mut split = split((0..5).map(Ok));
        let mut digest = SplitDigest::default();
        let mut pack = |limit| {
            let mut tasks = PackedTasks::default();
            let step = split.split_into(&mut tasks, &mut digest, limit).unwrap();
            (tasks.finish().get().to_owned(), step)
        };
        assert_eq!(pack(BatchLimit { tasks: 2, bytes: 100 }), ("[0,1]".into(), SplitStep::Full));
        assert_eq!(pack(BatchLimit { tasks: 9, bytes: 3 }), ("[2,3".to_owned() + "]", SplitStep::Full));
        assert_eq!(pack(BatchLimit { tasks: 9, bytes: 100 }), ("[4]".into(), SplitStep::End));
        assert_eq!(pack(BatchLimit { tasks: 9, bytes: 100 }), ("[]".into(), SplitStep::End));
    }

    #[test]
    fn split_errors_name_the_task() {
        let limit = BatchLimit { tasks: 9, bytes: 100 };
        let mut failing = split([Ok(1), Err(JobError::new("no such file"))].into_iter());
        let error = failing
            .split_into(&mut PackedTasks::default(), &mut SplitDigest::default(), limit)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "split failed at task 1: no such file");
        let mut panicking = split((0..3).map(|n| if n == 2 { panic!("two") } else { Ok(n) }));
        let error = panicking
            .split_into(&mut PackedTasks::default(), &mut SplitDigest::default(), limit)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "split failed at task 2: panic: two");
    }
}
