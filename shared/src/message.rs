//! Messages: properties that describe a body, and the body.

use bytes::Bytes;

use crate::{JobId, TraceParent};

/// A message as every transport carries it.
///
/// The wire module interprets the body; a transport carries it unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// The id, unique among the messages of its job. The same message published again has the same
    /// id.
    pub id: String,
    /// The message type, which names the wire format of the body, for instance
    /// `gristmill.batch.v1`.
    pub form: String,
    /// The job it belongs to, if any.
    pub job: Option<JobId>,
    /// The process that published it.
    pub app: String,
    /// The time of publication, in milliseconds since 1970. For people; nothing depends on it.
    pub timestamp_ms: u64,
    /// The content type: `application/json` for Gristmill's own messages.
    pub content_type: String,
    /// The compression of the body; empty for none.
    pub content_encoding: String,
    /// The counters and the trace context.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

/// The counters and the trace context that pass from message to message. A header with its default
/// value is absent on the broker.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Headers {
    /// `gm-attempt`: the number of times that the tasks of this batch have failed.
    pub attempt: u32,
    /// `gm-loss`: the number of times that the worker of this single task has died.
    pub loss: u32,
    /// `gm-released`: the number of times that workers that may not or cannot run this batch left
    /// it to others.
    pub released: u32,
    /// `gm-undecodable`: the time of the first failure to decode the batch, in milliseconds since
    /// 1970, and the ids of the workers that could not decode it, separated by spaces.
    pub undecodable: Option<String>,
    /// `gm-delay`: on a retried batch, the milliseconds that it still has to wait after its present
    /// step of the retry ladder.
    pub delay_ms: u32,
    /// `gm-reason`: the reason why a message is in the dead queue.
    pub reason: Option<String>,
    /// `gm-origin`: the queue that a dead message came from.
    pub origin: Option<String>,
    /// `traceparent`: the W3C trace context.
    pub traceparent: Option<String>,
}

impl Headers {
    /// Returns the trace that the message belongs to, if the header is a valid W3C trace context.
    #[must_use]
    pub fn trace(&self) -> Option<TraceParent> {
        self.traceparent.as_deref()?.parse().ok()
    }

    /// Returns the id of that trace in the log.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.trace().map(TraceParent::trace_id)
    }

    /// Returns the id in the log of the span that made the message, if that span is to be recorded.
    /// A span of this process with a `trace_id` and a `span_id` is exported under these ids
    /// (`--otlp`); its `parent_id`, if any, came in a message.
    #[must_use]
    pub fn span_id(&self) -> Option<String> {
        self.trace().and_then(TraceParent::span_id)
    }

    /// Returns the headers of messages that follow from a started batch: earlier releases no longer
    /// count.
    #[must_use]
    pub fn without_releases(&self) -> Self {
        Self { released: 0, undecodable: None, ..self.clone() }
    }

    /// Returns the headers of messages that follow from this one: in its trace, with the new span
    /// of the process that takes this message.
    #[must_use]
    pub fn follow(&self) -> Self {
        let mut headers = self.clone();
        if let Some(trace) = self.trace() {
            headers.traceparent = Some(trace.follow().to_string());
        }
        headers
    }
}
