//! Observability: what a running process shows of itself.

#[cfg(feature = "otlp")]
mod otlp;
mod telemetry;
