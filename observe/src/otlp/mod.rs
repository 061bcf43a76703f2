//! Export of spans of batches and results to a collector, by OTLP over HTTP, for `--otlp`.
//!
//! A span takes a place in a bounded queue, and is dropped if the queue is full. A thread of its
//! own exports. While the collector is unreachable only spans are lost, and one warning is logged.

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
    http_client::{LastHttpError, OtlpHttpClient},
    spans::SpanLayer,
};

/// The most spans that wait, at some 600 bytes each. Further spans are lost and counted.
const QUEUE_MAX_SPANS: usize = 8_192;
/// The most spans in one request.
const BATCH_MAX_SPANS: usize = 512;
/// The longest wait of a span for others in the same request.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// The time limit of a request. Spans that are not delivered by then are not sent again.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for the last spans when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The path of the collector for spans, below its address.
const TRACES_PATH: &str = "/v1/traces";

/// The service that the spans belong to.
#[derive(Debug)]
pub struct Service<'a> {
    /// Its name, unless `OTEL_SERVICE_NAME` overrides it.
    pub name: String,
    /// Its version.
    pub version: &'static str,
    /// The name of its host.
    pub host: &'a str,
}

/// An export of spans to a collector.
#[derive(Debug)]
pub struct SpanExport {
    url: String,
    processor: Arc<BatchSpanProcessor>,
    stats: Arc<ExportStats>,
}

/// The number of spans that ended, and of those that were delivered to the collector.
#[derive(Debug, Default)]
struct ExportStats {
    ended: AtomicU64,
    delivered: AtomicU64,
}

impl ExportStats {
    fn lost_and_ended(&self) -> (u64, u64) {
        let ended = self.ended.load(Ordering::Relaxed);
        (ended.saturating_sub(self.delivered.load(Ordering::Relaxed)), ended)
    }
}

impl SpanExport {
    /// Starts to export to the collector at this URL, without checking that it is reachable.
    ///
    /// # Errors
    /// If the URL is not that of a collector, with the reason.
    pub fn begin(url: &str, service: Service<'_>) -> Result<Self, String> {
        let url = traces_url(url)?;
        let stats = Arc::new(ExportStats::default());
        let last_error = LastHttpError::default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(OtlpHttpClient::new(COLLECTOR_TIMEOUT, last_error.clone()))
            .with_endpoint(&url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(COLLECTOR_TIMEOUT)
            .with_retry_policy(RetryPolicy::disabled()) // a retry would hold up the queue
            .build()
            .map_err(|error| error.to_string())?;
        let sender = SpanSender {
            exporter,
            url: url.clone(),
            last_error,
            stats: Arc::clone(&stats),
            unreachable: AtomicBool::new(false),
        };
        let bounds = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX_SPANS)
            .with_max_export_batch_size(BATCH_MAX_SPANS)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let mut processor = BatchSpanProcessor::new(sender, bounds);
        processor.set_resource(&service.resource());
        Ok(Self { url, processor: Arc::new(processor), stats })
    }

    /// Returns the layer that takes the spans, independent of the log level.
    pub fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        Box::new(SpanLayer::new(Arc::clone(&self.processor), Arc::clone(&self.stats)).filtered())
    }

    /// Logs the destination of the spans.
    pub fn announce(&self) {
        tracing::info!("spans go to {}", self.url);
    }

    /// Waits at most [`FLUSH_TIMEOUT`] for the last spans. Blocks.
    pub fn shut_down(self) {
        let _ = self.processor.shutdown_with_timeout(FLUSH_TIMEOUT); // undelivered spans are counted
        let (lost, ended) = self.stats.lost_and_ended();
        if lost > 0 {
            tracing::warn!("{lost} of {ended} spans did not get to {}", self.url);
        }
    }
}

impl Service<'_> {
    /// Returns the attributes of the service. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`
    /// take precedence.
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

/// Returns the collector's URL for spans, or the reason why this is not a collector's URL.
fn traces_url(url: &str) -> Result<String, String> {
    const EXPECTED_URL: &str = "expected http://HOST:PORT, as http://127.0.0.1:4318";
    let Some(place) = url.strip_prefix("http://") else {
        return Err(match url.starts_with("https://") {
            true => format!("{EXPECTED_URL}; for https:// run a local collector that speaks TLS"),
            false => EXPECTED_URL.into(),
        });
    };
    let host = place.split('/').next().unwrap_or_default();
    if host.contains('@') {
        return Err("credentials belong in a header: set OTEL_EXPORTER_OTLP_HEADERS".into());
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(EXPECTED_URL.into());
    }
    let base = url.trim_end_matches('/');
    Ok(if base.ends_with(TRACES_PATH) { base.into() } else { format!("{base}{TRACES_PATH}") })
}

/// An exporter that logs once when the collector becomes unreachable.
#[derive(Debug)]
struct SpanSender {
    exporter: SpanExporter,
    url: String,
    last_error: LastHttpError,
    stats: Arc<ExportStats>,
    unreachable: AtomicBool,
}

impl trace::SpanExporter for SpanSender {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.exporter.export(batch).await;
        match &sent {
            Ok(()) => {
                self.stats.delivered.fetch_add(spans, Ordering::Relaxed);
                if self.unreachable.swap(false, Ordering::Relaxed) {
                    tracing::info!("spans go to {} again", self.url);
                }
            }
            Err(error) => {
                let why = self.last_error.take().unwrap_or_else(|| error.to_string());
                if !self.unreachable.swap(true, Ordering::Relaxed) {
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
    fn collector_url_is_checked() {
        for (url, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://collector/otel", "http://collector/otel/v1/traces"),
            ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ] {
            assert_eq!(traces_url(url).as_deref(), Ok(expected));
        }
        for (url, why) in [
            ("collector:4318", "http://HOST"),
            ("https://collector", "TLS"),
            ("http://", "http://HOST"),
            ("http://:4318", "http://HOST"),
            ("http://me:secret@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
        ] {
            assert!(traces_url(url).is_err_and(|error| error.contains(why)), "{url}");
        }
    }
}
