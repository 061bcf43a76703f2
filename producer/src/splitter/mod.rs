//! The thread that splits: the only place where a producer runs user code for long.

use std::{ops::Range, sync::Arc};

use gristmill_shared::{
    AnyJob, AnySplit, BatchLimit, Headers, JobError, Message, Round, SplitDigest, SplitStep, TaskIndex,
    wire::{BATCH_MAX_BYTES, BATCH_MAX_TASKS, Batch, Opened, PackedTasks},
};
use tracing::Span;

use crate::batch_size::Sizing;

/// How many batches may be split ahead of the sending. They go to the broker together, if there is room.
pub(crate) const BATCHES_AHEAD: usize = 32;

/// What every batch of a job carries.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) opened: Opened,
    pub(crate) round: Round,
    /// The version of the job's code that splits.
    pub(crate) version: u32,
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
    /// From here until the broker has stored it.
    pub(crate) _span: Span,
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

/// Which tasks of a split are sent.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// All after this place. What comes before must be what it was.
    After(Place),
    /// Those in these ranges, ascending; nobody looks at the others.
    Ranges(Vec<Range<u64>>),
}

/// Starts to split, of `planned` tasks if that is known, in batches of the size that suits when they are packed. Ends when
/// the receiver goes.
pub(crate) fn start(
    job: Arc<dyn AnyJob>,
    label: Label,
    part: Part,
    planned: Option<u64>,
    sizing: Arc<Sizing>,
) -> std::io::Result<flume::Receiver<Split>> {
    let (sender, receiver) = flume::bounded(BATCHES_AHEAD);
    std::thread::Builder::new().name("split".into()).spawn(move || {
        let mut send = |packed| sender.send(Split::Batch(Box::new(packed))).is_ok();
        let last = match part {
            Part::After(place) => split(&*job, &label, place, (planned, &sizing), &mut send),
            Part::Ranges(ranges) => split_ranges(&*job, &label, &ranges, &sizing, &mut send),
        };
        if let Some(last) = last.unwrap_or_else(|error| Some(Split::Failed(error))) {
            let _ = sender.send(last); // nobody listens: the job was stopped
        }
    })?;
    Ok(receiver)
}

/// Whether the split still gives the tasks up to this place that it gave. Takes as long as splitting them; blocks.
///
/// # Errors
/// If the job's split fails.
pub(crate) fn is_unchanged(job: &dyn AnyJob, place: Place) -> Result<bool, JobError> {
    let mut walk = Walk::from(job, 0)?;
    walk.pass_over(place.index.0)?;
    Ok(walk.place == place)
}

/// Returns how the split ended, or nothing if nobody wanted more.
fn split(
    job: &dyn AnyJob,
    label: &Label,
    place: Place,
    (planned, sizing): (Option<u64>, &Sizing),
    send: &mut dyn FnMut(Packed) -> bool,
) -> Result<Option<Split>, JobError> {
    let mut walk = Walk::from(job, 0)?;
    walk.pass_over(place.index.0)?;
    if walk.place != place {
        return Ok(Some(Split::Changed));
    }
    loop {
        let left = planned.map(|planned| planned.saturating_sub(walk.place.index.0));
        let packed = walk.pack(label, sizing.next(left).into())?;
        sizing.got(packed.as_ref().map_or(0, |packed| packed.count));
        if packed.is_some_and(|packed| !send(packed)) {
            return Ok(None);
        }
        if walk.ended {
            return Ok(Some(Split::End(walk.place.index.0, walk.place.digest)));
        }
    }
}

/// As [`split`], but the digest at the end is of no use.
fn split_ranges(
    job: &dyn AnyJob,
    label: &Label,
    ranges: &[Range<u64>],
    sizing: &Sizing,
    send: &mut dyn FnMut(Packed) -> bool,
) -> Result<Option<Split>, JobError> {
    let mut walk = Walk::from(job, ranges.first().map_or(0, |range| range.start))?;
    let mut left: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    for range in ranges {
        walk.pass_over(range.start)?;
        while walk.place.index.0 < range.end && !walk.ended {
            let most = u64::from(sizing.next(Some(left))).min(range.end - walk.place.index.0);
            let packed = walk.pack(label, most)?;
            let count = packed.as_ref().map_or(0, |packed| packed.count);
            sizing.got(count);
            left -= u64::from(count);
            if packed.is_some_and(|packed| !send(packed)) {
                return Ok(None);
            }
        }
        if walk.place.index.0 < range.end {
            return Ok(Some(Split::Changed)); // there are fewer tasks than there were
        }
    }
    Ok(Some(Split::End(walk.place.index.0, walk.place.digest)))
}

/// A split under way.
struct Walk<'a> {
    split: Box<dyn AnySplit + 'a>,
    place: Place,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn from(job: &'a dyn AnyJob, index: u64) -> Result<Self, JobError> {
        let index = TaskIndex(index);
        let place = Place { index, digest: SplitDigest::default() };
        Ok(Self { split: job.split_from(index)?, place, ended: false })
    }

    /// Goes on to this index, or to the end if there is none.
    fn pass_over(&mut self, index: u64) -> Result<(), JobError> {
        while self.place.index.0 < index && !self.ended {
            self.take((index - self.place.index.0).min(BATCH_MAX_TASKS.into()))?;
        }
        Ok(())
    }

    /// The next tasks, at most so many; nothing if there are none.
    fn pack(&mut self, label: &Label, most: u64) -> Result<Option<Packed>, JobError> {
        let first = self.place.index;
        let tasks = self.take(most)?;
        let (count, digest) = (tasks.count(), self.place.digest);
        if count == 0 {
            return Ok(None);
        }
        let tasks = tasks.finish();
        let Label { opened, round, version, app } = label;
        let batch = Batch {
            round: *round,
            version: *version,
            // The submitter's build says nothing of a version that it did not have.
            build: opened.build.clone().filter(|_| *version == opened.version),
            ..Batch::new(opened, first, count, &tasks)
        };
        let message = batch.to_message(Headers::default(), app);
        let headers = &message.headers;
        let _span = tracing::debug_span!(
            "send", trace_id = headers.trace_id(), span_id = headers.span_id(), job = %opened.job, first = %first, tasks = count
        );
        Ok(Some(Packed { first, count, digest, message, _span }))
    }

    fn take(&mut self, most: u64) -> Result<PackedTasks, JobError> {
        let limit = BatchLimit { tasks: u32::try_from(most).unwrap_or(u32::MAX), bytes: BATCH_MAX_BYTES };
        let mut tasks = PackedTasks::default();
        self.ended = self.split.split_into(&mut tasks, &mut self.place.digest, limit)? == SplitStep::End;
        self.place.index = self.place.index.plus(tasks.count().into());
        Ok(tasks)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use gristmill_shared::{Job, JobId, Kind, Lane, Plan, Policy, TaskContext, TaskError, erase};
    use serde::{Deserialize, Serialize};
    use serde_json::value::RawValue;

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

    fn label() -> Label {
        Label {
            opened: Opened {
                job: JobId::generate(),
                kind: Kind::new("count").unwrap(),
                spec: RawValue::from_string("0".into()).unwrap(),
                policy: Policy::default(),
                plan: Plan::unknown(),
                lane: Lane::default(),
                submitted_ms: 0,
                version: 0,
                build: None,
            },
            round: Round(0),
            version: 0,
            app: "test".into(),
        }
    }

    fn split_all(tasks: u64, place: Place, batch: u32) -> (Vec<(u64, u32, SplitDigest)>, Split) {
        let mut batches = Vec::new();
        let last =
            split(&*erase(Count(tasks)), &label(), place, (None, &Sizing::Fixed(batch)), &mut |packed| {
                batches.push((packed.first.0, packed.count, packed.digest));
                true
            });
        (batches, last.unwrap().unwrap())
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
    fn only_the_ranges_that_are_asked_for_are_sent() {
        let send = |tasks: u64, ranges: &[Range<u64>]| {
            let mut batches = Vec::new();
            let last =
                split_ranges(&*erase(Count(tasks)), &label(), ranges, &Sizing::Fixed(4), &mut |packed| {
                    let batch = gristmill_shared::wire::decode::<Batch<'_>>(&packed.message).unwrap();
                    batches.push((packed.first.0, batch.tasks.get().to_owned()));
                    true
                });
            (batches, last.unwrap().unwrap())
        };
        let (batches, last) = send(30_000, &[2..3, 10..16, 29_998..30_000]);
        let batches: Vec<_> = batches.iter().map(|(first, tasks)| (*first, tasks.as_str())).collect();
        let expected = [(2, "[2]"), (10, "[10,11,12,13]"), (14, "[14,15]"), (29_998, "[29998,29999]")];
        assert_eq!(batches, expected);
        assert!(matches!(last, Split::End(30_000, _)), "{last:?}");
        assert!(matches!(send(12, &[2..3, 10..16]), (some, Split::Changed) if some.len() == 2));
    }

    #[test]
    fn whether_a_split_is_what_it_was_is_known_before_anything_is_sent_again() {
        let place = Place { index: TaskIndex(8), digest: split_all(8, Place::default(), 8).0[0].2 };
        let unchanged = |tasks, place| is_unchanged(&*erase(Count(tasks)), place).unwrap();
        assert!(unchanged(8, place) && unchanged(20, place));
        assert!(!unchanged(7, place) && !unchanged(20, Place { index: TaskIndex(9), ..place }));
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
