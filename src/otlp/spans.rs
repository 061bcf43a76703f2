//! Our spans, as OpenTelemetry knows them. Their ids are those that travel in `traceparent`: they stand in a span's fields
//! `trace_id`, `span_id` and `parent_id`, and the roles that write them know nothing of this.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use opentelemetry::{
    InstrumentationScope, Key, KeyValue, Value,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _};
use tracing::{
    Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, filter::filter_fn, layer::Context, registry::LookupSpan};

use super::Tally;

/// The field by which a span says that it travels, and is to be recorded.
const SPAN_ID: &str = "span_id";

/// Gives spans to the processor when they end.
pub(super) struct Spans {
    processor: Arc<BatchSpanProcessor>,
    tally: Arc<Tally>,
    scope: InstrumentationScope,
}

impl Spans {
    pub(super) fn new(processor: Arc<BatchSpanProcessor>, tally: Arc<Tally>) -> Self {
        Self { processor, tally, scope: InstrumentationScope::builder("gristmill").build() }
    }

    /// It, for the spans that travel and for nothing else, whatever is logged.
    pub(super) fn filtered<S>(self) -> impl Layer<S> + Send + Sync
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        self.with_filter(filter_fn(travels).with_max_level_hint(LevelFilter::DEBUG))
    }
}

fn travels(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.fields().field(SPAN_ID).is_some()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let begun = fields.begin(attributes.metadata().name(), self.scope.clone());
        if let (Some(span), Some(begun)) = (context.span(id), begun) {
            span.extensions_mut().insert(begun);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let ended = context.span(&id).and_then(|span| span.extensions_mut().remove::<SpanData>());
        if let Some(span) = ended {
            self.tally.ended.fetch_add(1, Ordering::Relaxed);
            self.processor.on_end(SpanData { end_time: SystemTime::now(), ..span });
        }
    }
}

/// What a span says of itself when it begins.
#[derive(Default)]
struct Fields {
    trace: Option<TraceId>,
    span: Option<SpanId>,
    parent: Option<SpanId>,
    others: Vec<KeyValue>,
}

impl Fields {
    /// Nothing if it is not to be recorded.
    fn begin(self, name: &'static str, scope: InstrumentationScope) -> Option<SpanData> {
        let now = SystemTime::now();
        Some(SpanData {
            span_context: SpanContext::new(
                self.trace?,
                self.span?,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            // What has a parent took a message, what has none sends one.
            span_kind: if self.parent.is_some() { SpanKind::Consumer } else { SpanKind::Producer },
            parent_span_id: self.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: self.parent.is_some(),
            name: name.into(),
            start_time: now,
            end_time: now,
            attributes: self.others,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: scope,
        })
    }

    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        self.others.push(KeyValue::new(Key::new(format!("gristmill.{}", field.name())), value));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "trace_id" => self.trace = TraceId::from_hex(value).ok(),
            SPAN_ID => self.span = SpanId::from_hex(value).ok(),
            "parent_id" => self.parent = SpanId::from_hex(value).ok(),
            _ => self.add(field, value.to_owned()),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, i64::try_from(value).unwrap_or(i64::MAX));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}
