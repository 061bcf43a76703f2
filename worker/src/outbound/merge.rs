//! Outputs on their way to the sink. Those of several batches share a message, which costs far more
//! than a tiny task.

use std::time::Duration;

use gristmill_shared::{
    DoneTasks, JobId, Outgoing, QueueRole, Round, TraceParent,
    wire::{Batch, OutputRun, RESULTS_MESSAGE_BYTES, Results, WireMessage},
};

use crate::context::WorkerContext;

/// Bytes that a run of consecutive outputs takes in a message besides them at most, with indices
/// and counts of any length.
const SPAN_BYTES: usize = 64;

/// The job of outputs, with its round and the version of its code: outputs of one source may share
/// a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputSource {
    pub(crate) job: JobId,
    pub(crate) round: Round,
    pub(crate) version: u32,
}

impl OutputSource {
    /// Returns the source of a batch's outputs.
    pub(crate) fn from_batch(batch: &Batch<'_>) -> Self {
        Self { job: batch.job, round: batch.round, version: batch.version }
    }
}

/// Outputs of one source, of one batch or more.
#[derive(Debug)]
pub(crate) struct MergedOutputs {
    source: OutputSource,
    /// The trace of the batch that they come from, the first if there are several.
    trace: Option<TraceParent>,
    /// The total time of their tasks.
    busy: Duration,
    done: Vec<DoneTasks>,
    bytes: usize,
}

impl MergedOutputs {
    /// Returns `None` if there are no outputs.
    pub(crate) fn new(
        source: OutputSource,
        trace: Option<TraceParent>,
        busy: Duration,
        done: Vec<DoneTasks>,
    ) -> Option<Self> {
        let bytes = done.iter().map(|done| SPAN_BYTES + done.bytes()).sum();
        (!done.is_empty()).then_some(Self { source, trace, busy, done, bytes })
    }

    /// Returns the bytes that they take in a message at most, without its source.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// True if both fit into one message.
    pub(crate) fn can_merge(&self, other: &Self) -> bool {
        self.source == other.source && self.bytes + other.bytes <= RESULTS_MESSAGE_BYTES
    }

    /// Adds the other outputs.
    pub(crate) fn merge(&mut self, other: Self) {
        self.busy += other.busy;
        self.bytes += other.bytes;
        self.done.extend(other.done);
    }

    /// Makes the message to the sink. Outputs of consecutive tasks are joined in it, across
    /// batches.
    pub(crate) fn into_message(mut self, context: &WorkerContext) -> Outgoing {
        self.done.sort_by_key(|done| done.first);
        let mut spans: Vec<DoneTasks> = Vec::new();
        for next in self.done {
            let apart = match spans.last_mut() {
                Some(last) => last.append(next).err(),
                None => Some(next),
            };
            spans.extend(apart);
        }
        let spans: Vec<_> =
            spans.into_iter().map(|done| (done.first, done.count, done.into_parts())).collect();
        let OutputSource { job, round, version } = self.source;
        let results = Results {
            job,
            round,
            version,
            build: context.build.clone(),
            worker: context.id.clone(),
            busy_us: micros(self.busy),
            done: spans
                .iter()
                .map(|(first, count, (outputs, tasks))| OutputRun {
                    first: *first,
                    count: *count,
                    outputs,
                    tasks: tasks.as_deref(),
                })
                .collect(),
            failed: Vec::new(),
        };
        results_message(context, &results, self.trace)
    }
}

/// Makes a message to the sink, in this trace.
pub(crate) fn results_message(
    context: &WorkerContext,
    results: &Results<'_>,
    trace: Option<TraceParent>,
) -> Outgoing {
    let id = format!("{}/{}#{}", results.job, context.id, context.next_message_seq());
    let mut message = results.message(id, context.id.as_str());
    message.headers.traceparent = trace.map(|trace| trace.to_string());
    Outgoing { to: context.address(QueueRole::Results), message }
}

/// Returns a time in the microseconds of the wire.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
