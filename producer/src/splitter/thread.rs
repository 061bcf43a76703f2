//! The thread that splits, the only one on which a producer runs user code for long.

use std::{ops::Range, sync::Arc};

use gristmill_shared::{AnyJob, JobError};

use super::{BATCHES_AHEAD, BatchTemplate, PackedBatch, SplitEvent, SplitPosition, SplitSelection, Splitter};
use crate::batch_size::BatchSizer;

/// Starts the thread that splits a job of `planned` tasks, if that is known. The size of a batch is
/// decided when the batch is packed. The thread ends when the receiver is dropped.
pub(crate) fn start(
    job: Arc<dyn AnyJob>,
    template: BatchTemplate,
    selection: SplitSelection,
    planned: Option<u64>,
    sizer: Arc<BatchSizer>,
) -> std::io::Result<flume::Receiver<SplitEvent>> {
    let (sender, receiver) = flume::bounded(BATCHES_AHEAD);
    std::thread::Builder::new().name("split".into()).spawn(move || {
        let mut has_new = false;
        let mut send = |packed| {
            has_new = true;
            sender.send(SplitEvent::Batch(Box::new(packed))).is_ok()
        };
        let last = match selection {
            SplitSelection::After { position, is_resumed } => {
                match split(&*job, &template, position, (planned, &sizer), &mut send) {
                    Err(error) if is_resumed && !has_new => Ok(Some(SplitEvent::Unavailable(error))),
                    last => last,
                }
            }
            SplitSelection::Ranges(ranges) => split_ranges(&*job, &template, &ranges, &sizer, &mut send),
        };
        if let Some(last) = last.unwrap_or_else(|error| Some(SplitEvent::Failed(error))) {
            let _ = sender.send(last); // fails if the job was stopped
        }
    })?;
    Ok(receiver)
}

/// Returns true if the split still yields the same tasks up to this position. Blocks for as long as
/// splitting them takes.
///
/// # Errors
/// If the job's split fails.
pub(crate) fn is_unchanged(job: &dyn AnyJob, position: SplitPosition) -> Result<bool, JobError> {
    let mut splitter = Splitter::start_at(job, 0)?;
    splitter.skip_to(position.index.0)?;
    Ok(splitter.position == position)
}

/// Splits all after `position`. Returns how the split ended, or `None` if the receiver was dropped.
fn split(
    job: &dyn AnyJob,
    template: &BatchTemplate,
    position: SplitPosition,
    (planned, sizer): (Option<u64>, &BatchSizer),
    send: &mut dyn FnMut(PackedBatch) -> bool,
) -> Result<Option<SplitEvent>, JobError> {
    let mut splitter = Splitter::start_at(job, 0)?;
    splitter.skip_to(position.index.0)?;
    if splitter.position != position {
        return Ok(Some(SplitEvent::Changed));
    }
    loop {
        let left = planned.map(|planned| planned.saturating_sub(splitter.position.index.0));
        let packed = splitter.pack_batch(template, sizer.next_size(left).into())?;
        sizer.record_sent(packed.as_ref().map_or(0, |packed| packed.count));
        if packed.is_some_and(|packed| !send(packed)) {
            return Ok(None);
        }
        if splitter.ended {
            return Ok(Some(SplitEvent::End(splitter.position.index.0, splitter.position.digest)));
        }
    }
}

/// Splits the given ranges. Returns as [`split`] does, but the digest at the end is of no use.
fn split_ranges(
    job: &dyn AnyJob,
    template: &BatchTemplate,
    ranges: &[Range<u64>],
    sizer: &BatchSizer,
    send: &mut dyn FnMut(PackedBatch) -> bool,
) -> Result<Option<SplitEvent>, JobError> {
    let mut splitter = Splitter::start_at(job, ranges.first().map_or(0, |range| range.start))?;
    let mut left: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    for range in ranges {
        splitter.skip_to(range.start)?;
        while splitter.position.index.0 < range.end && !splitter.ended {
            let most = u64::from(sizer.next_size(Some(left))).min(range.end - splitter.position.index.0);
            let packed = splitter.pack_batch(template, most)?;
            let count = packed.as_ref().map_or(0, |packed| packed.count);
            sizer.record_sent(count);
            left -= u64::from(count);
            if packed.is_some_and(|packed| !send(packed)) {
                return Ok(None);
            }
        }
        if splitter.position.index.0 < range.end {
            return Ok(Some(SplitEvent::Changed)); // the split has fewer tasks than before
        }
    }
    Ok(Some(SplitEvent::End(splitter.position.index.0, splitter.position.digest)))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use gristmill_shared::{
        Job, JobId, Kind, Lane, Plan, Policy, Round, SplitDigest, TaskContext, TaskError, TaskIndex, erase,
        wire::{Batch, Opened},
    };
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

    fn template() -> BatchTemplate {
        BatchTemplate {
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

    fn split_all(
        tasks: u64,
        position: SplitPosition,
        batch: u32,
    ) -> (Vec<(u64, u32, SplitDigest)>, SplitEvent) {
        let mut batches = Vec::new();
        let last = split(
            &*erase(Count(tasks)),
            &template(),
            position,
            (None, &BatchSizer::Fixed(batch)),
            &mut |packed| {
                batches.push((packed.first.0, packed.count, packed.digest));
                true
            },
        );
        (batches, last.unwrap().unwrap())
    }

    #[test]
    fn resumed_split_has_same_digest() {
        let (batches, last) = split_all(10, SplitPosition::default(), 4);
        assert_eq!(
            batches.iter().map(|(first, count, _)| (*first, *count)).collect::<Vec<_>>(),
            [(0, 4), (4, 4), (8, 2)]
        );
        let SplitEvent::End(10, digest) = last else { panic!("{last:?}") };
        let position = SplitPosition { index: TaskIndex(8), digest: batches[1].2 };
        let (rest, last) = split_all(10, position, 3);
        assert_eq!(rest, [(8, 2, digest)]);
        assert!(matches!(last, SplitEvent::End(10, again) if again == digest));
        let all = SplitPosition { index: TaskIndex(10), digest };
        assert!(matches!(split_all(10, all, 3), (none, SplitEvent::End(10, _)) if none.is_empty()));
    }

    #[test]
    fn only_selected_ranges_are_split() {
        let send = |tasks: u64, ranges: &[Range<u64>]| {
            let mut batches = Vec::new();
            let last = split_ranges(
                &*erase(Count(tasks)),
                &template(),
                ranges,
                &BatchSizer::Fixed(4),
                &mut |packed| {
                    let batch = gristmill_shared::wire::decode::<Batch<'_>>(&packed.message).unwrap();
                    batches.push((packed.first.0, batch.tasks.get().to_owned()));
                    true
                },
            );
            (batches, last.unwrap().unwrap())
        };
        let (batches, last) = send(30_000, &[2..3, 10..16, 29_998..30_000]);
        let batches: Vec<_> = batches.iter().map(|(first, tasks)| (*first, tasks.as_str())).collect();
        let expected = [(2, "[2]"), (10, "[10,11,12,13]"), (14, "[14,15]"), (29_998, "[29998,29999]")];
        assert_eq!(batches, expected);
        assert!(matches!(last, SplitEvent::End(30_000, _)), "{last:?}");
        assert!(matches!(send(12, &[2..3, 10..16]), (some, SplitEvent::Changed) if some.len() == 2));
    }

    #[test]
    fn is_unchanged_detects_changes() {
        let position =
            SplitPosition { index: TaskIndex(8), digest: split_all(8, SplitPosition::default(), 8).0[0].2 };
        let unchanged = |tasks, position| is_unchanged(&*erase(Count(tasks)), position).unwrap();
        assert!(unchanged(8, position) && unchanged(20, position));
        assert!(!unchanged(7, position) && !unchanged(20, SplitPosition { index: TaskIndex(9), ..position }));
    }

    /// A changed split is detected before anything is sent.
    #[test]
    fn changed_split_sends_nothing() {
        let position =
            SplitPosition { index: TaskIndex(8), digest: split_all(8, SplitPosition::default(), 8).0[0].2 };
        for (tasks, position) in [
            (7, position),                                                     // shorter than before
            (20, SplitPosition { index: TaskIndex(9), ..position }),           // other tasks before it
            (8, SplitPosition { digest: SplitDigest::default(), ..position }), // likewise, at the end
        ] {
            let (sent, last) = split_all(tasks, position, 3);
            assert!(
                sent.is_empty() && matches!(last, SplitEvent::Changed),
                "{tasks} {position:?}: {sent:?} {last:?}"
            );
        }
    }
}
