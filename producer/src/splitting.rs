//! The thread that splits: the only place where a producer runs user code for long.

use std::sync::Arc;

use gristmill_shared::{
    AnyJob, BatchLimit, JobError, JobId, Kind, Message, Policy, Round, SplitDigest, SplitStep, TaskIndex,
    wire::{BATCH_MAX_BYTES, BATCH_MAX_TASKS, Batch, PackedTasks},
};
use serde_json::value::RawValue;

/// How many batches may be split ahead of the sending.
const BATCHES_AHEAD: usize = 4;

/// What every batch of a job carries.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) job: JobId,
    pub(crate) kind: Kind,
    pub(crate) spec: Box<RawValue>,
    pub(crate) policy: Policy,
    pub(crate) app: String,
}

/// A batch on its way to the broker.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) first: TaskIndex,
    pub(crate) count: u32,
    /// Of all tasks up to the end of this batch.
    pub(crate) digest: SplitDigest,
    pub(crate) message: Message,
}

/// What the thread says.
#[derive(Debug)]
pub(crate) enum Split {
    /// The next tasks.
    Batch(Packed),
    /// There are no more; this many there were, with this digest.
    End(u64, SplitDigest),
    /// The job's split failed.
    Failed(JobError),
    /// The tasks before the place to go on from are not those that were sent.
    Changed,
}

/// Where a split goes on: after so many tasks, which had this digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: TaskIndex,
    pub(crate) digest: SplitDigest,
}

/// Starts to split, from `place` on, in batches of `batch` tasks. Ends when the receiver goes.
pub(crate) fn start(
    job: Arc<dyn AnyJob>,
    label: Label,
    place: Place,
    batch: u32,
) -> std::io::Result<flume::Receiver<Split>> {
    let (sender, receiver) = flume::bounded(BATCHES_AHEAD);
    std::thread::Builder::new().name("split".into()).spawn(move || {
        let last =
            split(&*job, &label, place, batch, &mut |packed| sender.send(Split::Batch(packed)).is_ok());
        if let Some(last) = last {
            let _ = sender.send(last); // nobody listens: the job was stopped
        }
    })?;
    Ok(receiver)
}

/// Returns how the split ended, or nothing if nobody wanted more.
fn split(
    job: &dyn AnyJob,
    label: &Label,
    place: Place,
    batch: u32,
    send: &mut dyn FnMut(Packed) -> bool,
) -> Option<Split> {
    let mut split = job.split_from(TaskIndex(0));
    let mut digest = SplitDigest::default();
    let mut next = TaskIndex(0);
    loop {
        if next == place.index && digest != place.digest {
            return Some(Split::Changed);
        }
        let known = place.index.0.saturating_sub(next.0);
        let most = if known > 0 {
            known.min(BATCH_MAX_TASKS.into())
        } else {
            batch.clamp(1, BATCH_MAX_TASKS).into()
        };
        let limit = BatchLimit { tasks: u32::try_from(most).unwrap_or(1), bytes: BATCH_MAX_BYTES };
        let mut tasks = PackedTasks::default();
        let step = match split.split_into(&mut tasks, &mut digest, limit) {
            Ok(step) => step,
            Err(error) => return Some(Split::Failed(error)),
        };
        let (first, count) = (next, tasks.count());
        next = first.plus(count.into());
        if count > 0 && known == 0 {
            let tasks = tasks.finish();
            let message = Batch {
                job: label.job,
                kind: label.kind.clone(),
                spec: &label.spec,
                policy: label.policy.clone(),
                round: Round(0),
                stage: 0,
                first,
                count,
                tasks: &tasks,
            }
            .to_message(0, &label.app);
            if !send(Packed { first, count, digest, message }) {
                return None;
            }
        }
        if step == SplitStep::End {
            let changed = next < place.index;
            return Some(if changed { Split::Changed } else { Split::End(next.0, digest) });
        }
    }
}
