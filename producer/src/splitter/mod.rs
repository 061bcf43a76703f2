//! Splitting of a job into packed batches, on a thread of its own.

mod thread;

use std::ops::Range;

use gristmill_shared::{
    AnyJob, AnySplit, BatchLimit, Headers, JobError, Message, Round, SplitDigest, SplitStep, TaskIndex,
    wire::{BATCH_MAX_BYTES, BATCH_MAX_TASKS, Batch, Opened, PackedTasks},
};
use tracing::Span;

pub(crate) use self::thread::{is_unchanged, start};

/// Batches that the thread may split ahead of the sender. They are published together if the
/// window has room.
pub(crate) const BATCHES_AHEAD: usize = 32;

/// The fields that all batches of a job have in common.
#[derive(Debug, Clone)]
pub(crate) struct BatchTemplate {
    pub(crate) opened: Opened,
    pub(crate) round: Round,
    /// The version of the job's code that splits.
    pub(crate) version: u32,
    pub(crate) app: String,
}

/// A batch that is ready to be published.
#[derive(Debug)]
pub(crate) struct PackedBatch {
    pub(crate) first: TaskIndex,
    pub(crate) count: u32,
    /// The digest of all tasks up to the end of this batch.
    pub(crate) digest: SplitDigest,
    pub(crate) message: Message,
    /// A span from packing until the broker has stored the batch.
    pub(crate) _span: Span,
}

/// An event of the thread that splits.
#[derive(Debug)]
pub(crate) enum SplitEvent {
    /// The next batch.
    Batch(Box<PackedBatch>),
    /// The end of the split, with the number of all tasks and their digest.
    End(u64, SplitDigest),
    /// An error of the job's split.
    Failed(JobError),
    /// An error of a resumed split before it gave a task that was not sent.
    Unavailable(JobError),
    /// A mismatch: the tasks before the start position are not those that were sent.
    Changed,
}

/// A position in a split: the number of tasks before it and their digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SplitPosition {
    pub(crate) index: TaskIndex,
    pub(crate) digest: SplitDigest,
}

/// The tasks of a split that are to be sent.
#[derive(Debug, Clone)]
pub(crate) enum SplitSelection {
    /// All after this position. The tasks before it must match its digest.
    After {
        /// The position.
        position: SplitPosition,
        /// True if an earlier producer has split the job up to there.
        is_resumed: bool,
    },
    /// The tasks in these ranges, which ascend. The other tasks are not checked.
    Ranges(Vec<Range<u64>>),
}

/// A split in progress.
struct Splitter<'a> {
    split: Box<dyn AnySplit + 'a>,
    position: SplitPosition,
    ended: bool,
}

impl<'a> Splitter<'a> {
    fn start_at(job: &'a dyn AnyJob, index: u64) -> Result<Self, JobError> {
        let index = TaskIndex(index);
        let position = SplitPosition { index, digest: SplitDigest::default() };
        Ok(Self { split: job.split_from(index)?, position, ended: false })
    }

    /// Skips to this index, or to the end if the split has fewer tasks.
    fn skip_to(&mut self, index: u64) -> Result<(), JobError> {
        while self.position.index.0 < index && !self.ended {
            self.take_tasks((index - self.position.index.0).min(BATCH_MAX_TASKS.into()))?;
        }
        Ok(())
    }

    /// Packs the next tasks, at most `most`. Returns `None` if there are none.
    fn pack_batch(&mut self, template: &BatchTemplate, most: u64) -> Result<Option<PackedBatch>, JobError> {
        let first = self.position.index;
        let tasks = self.take_tasks(most)?;
        let (count, digest) = (tasks.count(), self.position.digest);
        if count == 0 {
            return Ok(None);
        }
        let tasks = tasks.finish();
        let BatchTemplate { opened, round, version, app } = template;
        let batch = Batch {
            round: *round,
            version: *version,
            // A build is stated only for the version that the submitter had.
            build: opened.build.clone().filter(|_| *version == opened.version),
            ..Batch::new(opened, first, count, &tasks)
        };
        let message = batch.to_message(Headers::default(), app);
        let headers = &message.headers;
        let _span = tracing::debug_span!(
            "send", trace_id = headers.trace_id(), span_id = headers.span_id(), job = %opened.job, first = %first, tasks = count
        );
        Ok(Some(PackedBatch { first, count, digest, message, _span }))
    }

    fn take_tasks(&mut self, most: u64) -> Result<PackedTasks, JobError> {
        let limit = BatchLimit { tasks: u32::try_from(most).unwrap_or(u32::MAX), bytes: BATCH_MAX_BYTES };
        let mut tasks = PackedTasks::default();
        self.ended = self.split.split_into(&mut tasks, &mut self.position.digest, limit)? == SplitStep::End;
        self.position.index = self.position.index.plus(tasks.count().into());
        Ok(tasks)
    }
}
