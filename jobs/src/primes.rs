//! `primes`: counts the primes below a limit.

mod sieve;

use std::ops::{ControlFlow, Range};

use gristmill_shared::{Job, JobError, Plan, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};

use crate::pieces;

/// The largest limit. Bounds a worker's memory: there are 5.8 million primes up to its root, in up
/// to 64 MB.
const MAX_LIMIT: u64 = 10_000_000_000_000_000;

/// Count the primes below a limit.
///
/// Examples:
///   gristmill run primes --limit 100000000
///   producer submit primes --limit 1000000000000 --slice 100000000 --wait
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Primes {
    /// Count the primes below this number, at most 10^16
    #[arg(long, value_name = "N")]
    pub limit: u64,

    /// Numbers that one task sieves
    #[arg(long, value_name = "NUMBERS", default_value_t = DEFAULT_SLICE)]
    #[serde(default = "default_slice")]
    pub slice: u64,
}

const DEFAULT_SLICE: u64 = 1_000_000;

const fn default_slice() -> u64 {
    DEFAULT_SLICE
}

impl Job for Primes {
    const KIND: &'static str = "primes";
    /// The numbers to sieve.
    type Task = Range<u64>;
    /// The number of primes among them.
    type Output = u64;
    type Report = u64;

    fn plan(&self) -> Result<Plan, JobError> {
        let Self { limit, slice } = *self;
        if limit > MAX_LIMIT {
            return Err(JobError::new(format!("--limit {limit}: expected at most 10^16")));
        }
        if slice == 0 {
            return Err(JobError::new("--slice 0: expected at least 1 number a task"));
        }
        Ok(Plan::of(pieces::piece_count(limit, slice)).unit("slices"))
    }

    fn split(&self) -> impl Iterator<Item = Result<Range<u64>, JobError>> + Send {
        self.split_from(TaskIndex(0))
    }

    fn split_from(&self, index: TaskIndex) -> impl Iterator<Item = Result<Range<u64>, JobError>> + Send {
        pieces::pieces_from(index.0, self.limit, self.slice).map(Ok)
    }

    fn process(&self, task: Range<u64>, cx: &TaskContext) -> Result<u64, TaskError> {
        let limit = self.limit.min(MAX_LIMIT);
        if task.start > task.end || task.end > limit {
            return Err(TaskError::reject(format!("numbers {task:?} are not within 0..{limit}")));
        }
        sieve::count_primes(task, limit, cx)
    }

    fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
        *report = report.saturating_add(output);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{FailureKind, JobId, StopSignal};

    use super::*;

    #[test]
    fn plan_counts_slices() {
        let plan = |limit, slice| Primes { limit, slice }.plan().unwrap();
        assert_eq!(plan(100_000_000, 100_000), Plan::of(1000).unit("slices"));
        assert_eq!(plan(0, 1).tasks, Some(0));
        assert_eq!(plan(7, 100).tasks, Some(1));
        assert_eq!(plan(MAX_LIMIT, 1).tasks, Some(MAX_LIMIT));
    }

    #[test]
    fn bad_specs_are_refused() {
        let refusal = |limit, slice| Primes { limit, slice }.plan().unwrap_err().to_string();
        assert_eq!(refusal(10, 0), "--slice 0: expected at least 1 number a task");
        assert!(refusal(MAX_LIMIT + 1, 1).starts_with("--limit 10000000000000001: expected at most 10^16"));
    }

    #[test]
    fn slice_has_a_default() {
        let spec: Primes = serde_json::from_str(r#"{"limit":10}"#).unwrap();
        assert_eq!(spec, Primes { limit: 10, slice: 1_000_000 });
    }

    #[test]
    fn foreign_task_is_rejected() {
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        #[expect(clippy::reversed_empty_ranges, reason = "that is one of them")]
        for task in [90..101, 7..6] {
            let trouble = Primes { limit: 100, slice: 10 }.process(task, &cx).unwrap_err().into_kind();
            assert!(
                matches!(&trouble, FailureKind::Rejected(why) if why.contains("not within 0..100")),
                "{trouble:?}"
            );
        }
    }
}
