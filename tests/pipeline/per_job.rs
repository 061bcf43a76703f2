//! Choices of a job by its parameters, in a run without a broker: its policy and its slots.

use std::{
    collections::BTreeSet,
    sync::{Arc, Barrier},
    time::Duration,
};

use gristmill::{RunOptions, prelude::*};
use serde::{Deserialize, Serialize};

/// A job whose tasks fail at each attempt, and that allows `attempts` of them.
#[derive(Serialize, Deserialize)]
struct Failing {
    attempts: u32,
}

impl Job for Failing {
    const KIND: &'static str = "failing";
    type Task = ();
    type Output = ();
    type Report = ();

    fn policy(&self, defaults: Policy) -> Policy {
        assert_eq!(defaults.retry_delays_ms, [1_000, 1_000, 5_000, 10_000], "those of a run");
        Policy { max_attempts: self.attempts, retry_delays_ms: vec![1_000], ..defaults }
    }
    fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
        std::iter::once(Ok(()))
    }
    fn process(&self, (): (), cx: &TaskContext) -> Result<(), TaskError> {
        Err(TaskError::failed(format!("attempt {}", cx.attempt())))
    }
    fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[test]
fn kind_chooses_its_attempts() {
    let last = |attempts, options| {
        let outcome = gristmill::run(Failing { attempts }, options).unwrap();
        outcome.failures[&TaskIndex(0)].clone()
    };
    assert!(last(1, RunOptions::default()).contains("attempt 1"));
    assert!(last(2, RunOptions::default()).contains("attempt 2"));
    assert!(last(9, RunOptions::default().max_attempts(1)).contains("attempt 1"), "what is stated wins");
}

/// A job with a task for each slot. Each waits until all of them run.
#[derive(Serialize, Deserialize)]
struct SlotNames {
    #[serde(skip, default = "no_barrier")]
    all_run: Barrier,
    slots: u16,
}

fn no_barrier() -> Barrier {
    Barrier::new(1)
}

impl Job for SlotNames {
    const KIND: &'static str = "slot-names";
    type Task = ();
    type Output = u32;
    type Report = BTreeSet<u32>;

    fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
        (0..self.slots).map(|_| Ok(()))
    }
    fn process(&self, (): (), cx: &TaskContext) -> Result<u32, TaskError> {
        self.all_run.wait();
        Ok(cx.slot())
    }
    fn collect(&self, names: &mut BTreeSet<u32>, _: TaskIndex, slot: u32) -> ControlFlow<()> {
        names.insert(slot);
        ControlFlow::Continue(())
    }
}

#[test]
fn each_slot_has_a_number() {
    let slots = 3;
    let job = Arc::new(SlotNames { all_run: Barrier::new(slots.into()), slots });
    let options = RunOptions::default().slots(slots).batch(1).task_timeout(Duration::from_secs(60));
    let outcome = gristmill::run::<SlotNames>(job, options).unwrap();
    assert_eq!(outcome.report, BTreeSet::from([0, 1, 2]));
}
