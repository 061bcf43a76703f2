//! The metrics of a fleet. The catalogue lists every metric with its name and its labels.
//!
//! Recording uses the crate `metrics`, so that a job's own code may record metrics as well. Without
//! a recorder (the front door installs one) it does nothing. Label values must be few: a job's id
//! is not allowed. Metrics are recorded per batch and message, not per task, because recording
//! costs about as much as a small allocation.

mod catalogue;

pub use catalogue::*;
use metrics::{Key, Label, Level, Metadata, with_recorder};

const METRIC_METADATA: Metadata<'static> = Metadata::new("gristmill", Level::INFO, None);

/// A metric that only increases.
#[derive(Debug)]
pub struct Counter<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
}

/// A metric that increases and decreases.
#[derive(Debug)]
pub struct Gauge<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
}

/// A metric that counts values in fixed buckets.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
    bounds: &'static [f64],
}

/// A metric as the catalogue lists it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricSpec {
    /// The name, with the unit.
    pub name: &'static str,
    /// The type of its values.
    pub shape: MetricType,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The meaning, for people.
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricType {
    /// A number that only increases.
    Counter,
    /// A number that increases and decreases.
    Gauge,
    /// The number of values up to each of these bounds.
    Histogram(&'static [f64]),
}

impl MetricType {
    /// Returns the name of the type in Prometheus.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl<const N: usize> Counter<N> {
    const fn new(name: &'static str, labels: [&'static str; N]) -> Self {
        Self { name, labels }
    }

    const fn metric_spec(&'static self, help: &'static str) -> MetricSpec {
        MetricSpec { name: self.name, shape: MetricType::Counter, labels: &self.labels, help }
    }

    /// Adds `more` to the series with these label values.
    pub fn add(&self, values: [&str; N], more: u64) {
        if more > 0 {
            self.handle(values).increment(more);
        }
    }

    /// Raises the series with these label values to `total`, unless it is larger already.
    pub fn set_total(&self, values: [&str; N], total: u64) {
        self.handle(values).absolute(total);
    }

    fn handle(&self, values: [&str; N]) -> metrics::Counter {
        let key = key(self.name, self.labels, values);
        with_recorder(|recorder| recorder.register_counter(&key, &METRIC_METADATA))
    }
}

impl<const N: usize> Gauge<N> {
    const fn new(name: &'static str, labels: [&'static str; N]) -> Self {
        Self { name, labels }
    }

    const fn metric_spec(&'static self, help: &'static str) -> MetricSpec {
        MetricSpec { name: self.name, shape: MetricType::Gauge, labels: &self.labels, help }
    }

    /// Sets the series with these label values to `now`.
    pub fn set(&self, values: [&str; N], now: f64) {
        self.handle(values).set(now);
    }

    /// Adds one to the series with these label values.
    pub fn inc(&self, values: [&str; N]) {
        self.handle(values).increment(1.0);
    }

    /// Subtracts one from the series with these label values.
    pub fn dec(&self, values: [&str; N]) {
        self.handle(values).decrement(1.0);
    }

    fn handle(&self, values: [&str; N]) -> metrics::Gauge {
        let key = key(self.name, self.labels, values);
        with_recorder(|recorder| recorder.register_gauge(&key, &METRIC_METADATA))
    }
}

impl<const N: usize> Histogram<N> {
    const fn new(name: &'static str, labels: [&'static str; N], bounds: &'static [f64]) -> Self {
        Self { name, labels, bounds }
    }

    const fn metric_spec(&'static self, help: &'static str) -> MetricSpec {
        MetricSpec { name: self.name, shape: MetricType::Histogram(self.bounds), labels: &self.labels, help }
    }

    /// Counts one value of this size in the series with these label values.
    pub fn record(&self, values: [&str; N], size: f64) {
        let key = key(self.name, self.labels, values);
        with_recorder(|recorder| recorder.register_histogram(&key, &METRIC_METADATA)).record(size);
    }
}

fn key<const N: usize>(name: &'static str, labels: [&'static str; N], values: [&str; N]) -> Key {
    if N == 0 {
        return Key::from_static_name(name);
    }
    let labels = labels.into_iter().zip(values);
    Key::from_parts(
        name,
        labels.map(|(label, value)| Label::new(label, value.to_owned())).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn metric_names_fit_prometheus() {
        let names: BTreeSet<_> = METRIC_CATALOGUE.iter().map(|listed| listed.name).collect();
        assert_eq!(names.len(), METRIC_CATALOGUE.len(), "a name twice");
        for MetricSpec { name, shape, labels, help } in METRIC_CATALOGUE {
            assert!(name.starts_with("gristmill_"), "{name}");
            let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(plain(name) && labels.iter().all(|label| plain(label)), "{name}");
            assert_eq!(name.ends_with("_total"), *shape == MetricType::Counter, "{name}");
            assert!(help.len() > 20 && !help.ends_with('.'), "{name}: {help}");
            if let MetricType::Histogram(bounds) = shape {
                assert!(bounds.is_sorted() && bounds.len() <= 16, "{name}");
            }
        }
    }
}
