//! What `--otlp` does: spans of batches and results go to a collector, by OTLP over HTTP.
//!
//! A span costs its slot a place in a bounded queue, or nothing if that is full. A thread of its own sends; a collector that
//! is away costs nothing but spans, and is told of once until it is back.

mod http_client;
mod spans;

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::EnvResourceDetector,
    trace::{self, BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanProcessor as _},
};
use tracing_subscriber::{Layer, Registry};

use self::{
    http_client::{Post, Trouble},
    spans::Spans,
};

/// How many spans may wait to be sent, at some 600 bytes each; further ones are lost, and counted.
const QUEUE_MAX: usize = 8_192;
/// How many go together, if so many wait.
const TOGETHER_MAX: usize = 512;
/// How long a span waits for others to go with.
const LINGER: Duration = Duration::from_secs(1);
/// How long a collector may take to answer. What it has not taken by then is not sent again.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a program that ends waits for its last spans to be taken.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Where OTLP over HTTP takes spans, below the collector's address.
const PATH: &str = "/v1/traces";

/// Whose spans they are.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    /// What it is called, unless `OTEL_SERVICE_NAME` says otherwise.
    pub(crate) name: String,
    pub(crate) version: &'static str,
    pub(crate) host: &'a str,
}

/// Spans on their way to a collector.
#[derive(Debug)]
pub(crate) struct Export {
    url: String,
    processor: Arc<BatchSpanProcessor>,
    tally: Arc<Tally>,
}

/// How many spans have ended, and how many of them a collector has taken.
#[derive(Debug, Default)]
struct Tally {
    ended: AtomicU64,
    taken: AtomicU64,
}

impl Tally {
    fn lost(&self) -> (u64, u64) {
        let ended = self.ended.load(Ordering::Relaxed);
        (ended.saturating_sub(self.taken.load(Ordering::Relaxed)), ended)
    }
}

impl Export {
    /// Begins to send to the collector at this URL. Nobody is asked whether it is there.
    ///
    /// # Errors
    /// If it is no URL of a collector, with the reason.
    pub(crate) fn begin(url: &str, service: Service<'_>) -> Result<Self, String> {
        let url = whole(url)?;
        let tally = Arc::new(Tally::default());
        let trouble = Trouble::default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Post::new(ANSWER_MAX, trouble.clone()))
            .with_endpoint(&url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(ANSWER_MAX)
            .with_retry_policy(RetryPolicy::disabled()) // the queue does not wait for one that is away
            .build()
            .map_err(|error| error.to_string())?;
        let sender = Sender {
            exporter,
            url: url.clone(),
            trouble,
            tally: Arc::clone(&tally),
            away: AtomicBool::new(false),
        };
        let bounds = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(TOGETHER_MAX)
            .with_scheduled_delay(LINGER)
            .build();
        let mut processor = BatchSpanProcessor::new(sender, bounds);
        processor.set_resource(&service.resource());
        Ok(Self { url, processor: Arc::new(processor), tally })
    }

    /// What takes the spans, whatever else is logged.
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        Box::new(Spans::new(Arc::clone(&self.processor), Arc::clone(&self.tally)).filtered())
    }

    /// Says where they go.
    pub(crate) fn announce(&self) {
        tracing::info!("spans go to {}", self.url);
    }

    /// Waits for the last spans, for a moment. Blocks.
    pub(crate) fn end(self) {
        let _ = self.processor.shutdown_with_timeout(FLUSH_MAX); // what did not go is counted
        let (lost, ended) = self.tally.lost();
        if lost > 0 {
            tracing::warn!("{lost} of {ended} spans did not get to {}", self.url);
        }
    }
}

impl Service<'_> {
    /// What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say comes first.
    fn resource(&self) -> Resource {
        let ours = [
            KeyValue::new("service.name", self.name.clone()),
            KeyValue::new("service.version", self.version),
            KeyValue::new("host.name", self.host.to_owned()),
            KeyValue::new("process.pid", i64::from(process::id())),
        ];
        let name = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
        Resource::builder_empty()
            .with_attributes(ours)
            .with_detector(Box::new(EnvResourceDetector::new()))
            .with_attributes(name.map(|name| KeyValue::new("service.name", name)))
            .build()
    }
}

/// Where exactly spans go, if this is a collector's URL.
fn whole(url: &str) -> Result<String, String> {
    const EXPECTED: &str = "expected http://HOST:PORT, as http://127.0.0.1:4318";
    let Some(place) = url.strip_prefix("http://") else {
        return Err(match url.starts_with("https://") {
            true => format!("{EXPECTED}; for https:// let a collector nearby speak TLS"),
            false => EXPECTED.into(),
        });
    };
    let host = place.split('/').next().unwrap_or_default();
    if host.contains('@') {
        return Err("what opens a collector's door is a header: OTEL_EXPORTER_OTLP_HEADERS".into());
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(EXPECTED.into());
    }
    let base = url.trim_end_matches('/');
    Ok(if base.ends_with(PATH) { base.into() } else { format!("{base}{PATH}") })
}

/// Sends, and says once when nobody takes it.
#[derive(Debug)]
struct Sender {
    exporter: SpanExporter,
    url: String,
    trouble: Trouble,
    tally: Arc<Tally>,
    away: AtomicBool,
}

impl trace::SpanExporter for Sender {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.exporter.export(batch).await;
        match &sent {
            Ok(()) => {
                self.tally.taken.fetch_add(spans, Ordering::Relaxed);
                if self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!("spans go to {} again", self.url);
                }
            }
            Err(error) => {
                let why = self.trouble.take().unwrap_or_else(|| error.to_string());
                if !self.away.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "spans cannot go to {}: {why}; they are lost until they can, all else goes on",
                        self.url
                    );
                }
            }
        }
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_url_is_where_spans_go_or_refused() {
        for (url, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://collector/otel", "http://collector/otel/v1/traces"),
            ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ] {
            assert_eq!(whole(url).as_deref(), Ok(expected));
        }
        for (url, why) in [
            ("collector:4318", "http://HOST"),
            ("https://collector", "TLS"),
            ("http://", "http://HOST"),
            ("http://:4318", "http://HOST"),
            ("http://me:secret@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
        ] {
            assert!(whole(url).is_err_and(|error| error.contains(why)), "{url}");
        }
    }
}
