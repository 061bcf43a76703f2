//! Metrics, health and spans of a process, for a service that embeds a role as well as for the
//! stock programs.
//!
//! [`MetricsServer`] serves Prometheus metrics, liveness and readiness over HTTP. With the feature
//! `otlp`, `SpanExport` sends the spans of batches and results to an OpenTelemetry collector.

mod metrics;
#[cfg(feature = "otlp")]
mod otlp;

pub use self::metrics::{MetricsError, MetricsServer};
#[cfg(feature = "otlp")]
pub use self::otlp::{Service, SpanExport};
