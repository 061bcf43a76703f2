//! Batches of a spin without work.

use gristmill_jobs::Spin;
use gristmill_shared::{
    BatchLimit, Job as _, JobId, Kind, Policy, Round, SplitDigest, TaskIndex, erase,
    wire::{BATCH_MAX_BYTES, Batch, PackedTasks},
};
use serde_json::value::RawValue;

/// Returns `count` tasks of a spin, packed as a producer packs them.
pub(crate) fn packed(count: u32) -> PackedTasks {
    let job = erase(spin(count));
    let mut split = job.split_from(TaskIndex(0)).expect("a spin can be split");
    let limit = BatchLimit { tasks: count, bytes: BATCH_MAX_BYTES };
    let mut tasks = PackedTasks::default();
    split.split_into(&mut tasks, &mut SplitDigest::default(), limit).expect("a spin gives tasks");
    assert_eq!(tasks.count(), count, "a batch of tasks without payload has room for all");
    tasks
}

pub(crate) fn spin(count: u32) -> Spin {
    Spin { tasks: count.into(), ..Spin::default() }
}

/// Returns a batch of these tasks.
pub(crate) fn batch<'a>(spec: &'a RawValue, tasks: &'a RawValue, count: u32) -> Batch<'a> {
    Batch {
        job: JobId::generate(),
        kind: Kind::new(Spin::KIND).expect("a kind that is registered"),
        spec,
        policy: Policy::default(),
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(0),
        count,
        tasks,
    }
}
