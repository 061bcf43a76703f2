//! Outputs on their way to the sink. Those of several batches travel together: a message costs far more than a tiny task.

use std::time::Duration;

use gristmill_shared::{
    DoneTasks, JobId, Outgoing, QueueRole, Round, TraceParent,
    wire::{Batch, DoneSpan, Form, RESULTS_MESSAGE_BYTES, Results},
};

use crate::context::Shop;

/// What a stretch of consecutive outputs takes in a message beside them at most: with indices and counts of any length.
const SPAN_BYTES: usize = 64;

/// The job that outputs belong to, with its round and the version of its code there: outputs of one
/// source travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) job: JobId,
    pub(crate) round: Round,
    pub(crate) version: u32,
}

impl Source {
    /// The source of a batch's outputs.
    pub(crate) fn of(batch: &Batch<'_>) -> Self {
        Self { job: batch.job, round: batch.round, version: batch.version }
    }
}

/// Outputs of tasks of one source.
#[derive(Debug)]
pub(crate) struct Outputs {
    source: Source,
    /// The trace of the batch that they come from, the first if there are several.
    trace: Option<TraceParent>,
    /// How long their tasks took, together.
    busy: Duration,
    done: Vec<DoneTasks>,
    bytes: usize,
}

impl Outputs {
    /// None if there are none.
    pub(crate) fn new(
        source: Source,
        trace: Option<TraceParent>,
        busy: Duration,
        done: Vec<DoneTasks>,
    ) -> Option<Self> {
        let bytes = done.iter().map(|done| SPAN_BYTES + done.bytes()).sum();
        (!done.is_empty()).then_some(Self { source, trace, busy, done, bytes })
    }

    /// How many bytes they take in a message at most, but for what says whose they are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether these can travel in one message with those.
    pub(crate) fn goes_with(&self, other: &Self) -> bool {
        self.source == other.source && self.bytes + other.bytes <= RESULTS_MESSAGE_BYTES
    }

    /// Takes the other's along.
    pub(crate) fn join(&mut self, other: Self) {
        self.busy += other.busy;
        self.bytes += other.bytes;
        self.done.extend(other.done);
    }

    /// As a message to the sink. Outputs of consecutive tasks stand together in it, whatever batches they come from.
    pub(crate) fn message(mut self, shop: &Shop) -> Outgoing {
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
        let Source { job, round, version } = self.source;
        let results = Results {
            job,
            round,
            version,
            build: shop.build.clone(),
            worker: shop.id.clone(),
            busy_us: micros(self.busy),
            done: spans
                .iter()
                .map(|(first, count, (outputs, tasks))| DoneSpan {
                    first: *first,
                    count: *count,
                    outputs,
                    tasks: tasks.as_deref(),
                })
                .collect(),
            failed: Vec::new(),
        };
        results_message(shop, &results, self.trace)
    }
}

/// A message to the sink, in this trace.
pub(crate) fn results_message(shop: &Shop, results: &Results<'_>, trace: Option<TraceParent>) -> Outgoing {
    let id = format!("{}/{}#{}", results.job, shop.id, shop.message_number());
    let mut message = results.message(id, shop.id.as_str());
    message.headers.traceparent = trace.map(|trace| trace.to_string());
    Outgoing { to: shop.to(QueueRole::Results), message }
}

/// As the wire tells a time.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
