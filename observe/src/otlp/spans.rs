//! Conversion of spans to those of OpenTelemetry. Their ids are those in `traceparent`, which the
//! roles write to a span's fields `trace_id`, `span_id` and `parent_id`; the roles do not know of
//! OpenTelemetry.

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

use super::ExportStats;

/// The field of a span that is to be exported.
const SPAN_ID: &str = "span_id";

/// A layer that passes spans to the processor when they end.
pub(super) struct SpanLayer {
    processor: Arc<BatchSpanProcessor>,
    stats: Arc<ExportStats>,
    scope: InstrumentationScope,
}

impl SpanLayer {
    pub(super) fn new(processor: Arc<BatchSpanProcessor>, stats: Arc<ExportStats>) -> Self {
        Self { processor, stats, scope: InstrumentationScope::builder("gristmill").build() }
    }

    /// Restricts the layer to spans that are to be exported, independent of the log level.
    pub(super) fn filtered<S>(self) -> impl Layer<S> + Send + Sync
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        self.with_filter(filter_fn(has_span_id).with_max_level_hint(LevelFilter::DEBUG))
    }
}

fn has_span_id(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.fields().field(SPAN_ID).is_some()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = SpanFields::default();
        attributes.record(&mut fields);
        let span_data = fields.into_span_data(attributes.metadata().name(), self.scope.clone());
        if let (Some(span), Some(span_data)) = (context.span(id), span_data) {
            span.extensions_mut().insert(span_data);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let ended = context.span(&id).and_then(|span| span.extensions_mut().remove::<SpanData>());
        if let Some(span) = ended {
            self.stats.ended.fetch_add(1, Ordering::Relaxed);
            self.processor.on_end(SpanData { end_time: SystemTime::now(), ..span });
        }
    }
}

/// The fields of a span at its start.
#[derive(Default)]
struct SpanFields {
    trace: Option<TraceId>,
    span: Option<SpanId>,
    parent: Option<SpanId>,
    others: Vec<KeyValue>,
}

impl SpanFields {
    /// Returns the started span, or `None` if it is not to be exported.
    fn into_span_data(self, name: &'static str, scope: InstrumentationScope) -> Option<SpanData> {
        let now = SystemTime::now();
        Some(SpanData {
            span_context: SpanContext::new(
                self.trace?,
                self.span?,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            // A span with a parent consumes a message, one without publishes one.
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

impl Visit for SpanFields {
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
