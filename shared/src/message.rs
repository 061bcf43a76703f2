//! What travels: properties that say what a body is, and the body.

use bytes::Bytes;

use crate::{JobId, TraceParent};

/// A message as every transport carries it.
///
/// What the body means is the wire module's business; a transport carries it untouched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// Unique among the messages of its job; the same message published again has the same id.
    pub id: String,
    /// Which of the wire formats the body is in, for instance `gristmill.batch.v1`.
    pub form: String,
    /// The job it belongs to, if any.
    pub job: Option<JobId>,
    /// The process that published it.
    pub app: String,
    /// When it was published, in milliseconds since 1970. For people; nothing depends on it.
    pub timestamp_ms: u64,
    /// `application/json`, if it is ours.
    pub content_type: String,
    /// How the body is packed; empty for not at all.
    pub content_encoding: String,
    /// What is counted and traced from message to message.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

/// What is counted and traced from message to message. Absent on the broker where it has its default value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Headers {
    /// `gm-attempt`: how often the tasks of this batch have failed.
    pub attempt: u32,
    /// `gm-loss`: how often the worker of this single task has died.
    pub loss: u32,
    /// `gm-released`: how often workers that may not or cannot run this batch left it to others.
    pub released: u32,
    /// `gm-undecodable`: which workers could not decode it, and since when: milliseconds since 1970
    /// and worker ids, separated by spaces.
    pub undecodable: Option<String>,
    /// `gm-delay`: on a retried batch, how many milliseconds it has still to wait once it has come
    /// out of its present step of the retry ladder.
    pub delay_ms: u32,
    /// `gm-reason`: why a message is in the dead queue.
    pub reason: Option<String>,
    /// `gm-origin`: which queue a dead message came from.
    pub origin: Option<String>,
    /// `traceparent`: the W3C trace context.
    pub traceparent: Option<String>,
}

impl Headers {
    /// The trace that the message belongs to, if it says so in a way that others understand.
    #[must_use]
    pub fn trace(&self) -> Option<TraceParent> {
        self.traceparent.as_deref()?.parse().ok()
    }

    /// What the log calls that trace.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.trace().map(TraceParent::trace_id)
    }

    /// What the log calls the span that the message was made in, if that is to be recorded. A span of ours that has a
    /// `trace_id` and a `span_id` is exported as that one (`--otlp`); its `parent_id`, if it has one, came in a message.
    #[must_use]
    pub fn span_id(&self) -> Option<String> {
        self.trace().and_then(TraceParent::span_id)
    }

    /// The headers of messages that follow from a batch that has begun: releases before that do not
    /// count any more.
    #[must_use]
    pub fn begun(&self) -> Self {
        Self { released: 0, undecodable: None, ..self.clone() }
    }

    /// Those of messages that follow from this one: of its trace, and of a new span, that of whoever takes this one.
    #[must_use]
    pub fn follow(&self) -> Self {
        let mut headers = self.clone();
        if let Some(trace) = self.trace() {
            headers.traceparent = Some(trace.follow().to_string());
        }
        headers
    }
}
