//! The thread that splits: the only place where a producer runs user code for long.

use std::sync::Arc;

use gristmill_shared::{
    AnyJob, BatchLimit, Headers, JobError, JobId, Kind, Message, Policy, Round, SplitDigest, SplitStep,
    TaskIndex,
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
    Batch(Box<Packed>),
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
        let last = split(&*job, &label, place, batch, &mut |packed| {
            sender.send(Split::Batch(Box::new(packed))).is_ok()
        });
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
    let mut split = match job.split_from(TaskIndex(0)) {
        Ok(split) => split,
        Err(error) => return Some(Split::Failed(error)),
    };
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
                spent: 0,
                first,
                count,
                tasks: &tasks,
            }
            .to_message(Headers::default(), &label.app);
            if !send(Packed { first, count, digest, message }) {
                return None;
            }
        }
        if step == SplitStep::End {
            let changed = next < place.index || (next == place.index && digest != place.digest);
            return Some(if changed { Split::Changed } else { Split::End(next.0, digest) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use gristmill_shared::{Job, TaskContext, TaskError, erase};
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Count(u64);

    impl Job for Count {
        const KIND: &'static str = "count";
        type Task = u64;
        type Output = ();
        type Report = ();
        fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
            (0..self.0).map(Ok)
        }
        fn process(&self, _: u64, _: &TaskContext) -> Result<(), TaskError> {
            Ok(())
        }
        fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }

    fn split_all(tasks: u64, place: Place, batch: u32) -> (Vec<(u64, u32, SplitDigest)>, Split) {
        let label = Label {
            job: JobId::generate(),
            kind: Kind::new("count").unwrap(),
            spec: RawValue::from_string("0".into()).unwrap(),
            policy: Policy::default(),
            app: "test".into(),
        };
        let mut batches = Vec::new();
        let last = split(&*erase(Count(tasks)), &label, place, batch, &mut |packed| {
            batches.push((packed.first.0, packed.count, packed.digest));
            true
        });
        (batches, last.unwrap())
    }

    #[test]
    fn a_split_goes_on_where_it_was_left_with_the_same_digest() {
        let (batches, last) = split_all(10, Place::default(), 4);
        assert_eq!(
            batches.iter().map(|(first, count, _)| (*first, *count)).collect::<Vec<_>>(),
            [(0, 4), (4, 4), (8, 2)]
        );
        let Split::End(10, digest) = last else { panic!("{last:?}") };
        let place = Place { index: TaskIndex(8), digest: batches[1].2 };
        let (rest, last) = split_all(10, place, 3);
        assert_eq!(rest, [(8, 2, digest)]);
        assert!(matches!(last, Split::End(10, again) if again == digest));
        let all = Place { index: TaskIndex(10), digest };
        assert!(matches!(split_all(10, all, 3), (none, Split::End(10, _)) if none.is_empty()));
    }

    #[test]
    fn a_changed_split_is_noticed_before_anything_is_sent() {
        let place = Place { index: TaskIndex(8), digest: split_all(8, Place::default(), 8).0[0].2 };
        for (tasks, place) in [
            (7, place),                                             // shorter than it was
            (20, Place { index: TaskIndex(9), ..place }),           // other tasks before the place
            (8, Place { digest: SplitDigest::default(), ..place }), // likewise, ending there
        ] {
            let (sent, last) = split_all(tasks, place, 3);
            assert!(
                sent.is_empty() && matches!(last, Split::Changed),
                "{tasks} {place:?}: {sent:?} {last:?}"
            );
        }
    }
}
