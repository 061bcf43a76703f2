//! What is counted, for whoever watches a fleet: every metric, with its name and its labels, stands in the catalogue.
//!
//! It goes through the facade `metrics`, by which a job's own code may count as well. Where nobody listens (the front
//! door decides), counting comes to nothing. Label values must be few: a job's id is none. For batches and
//! messages, not for tasks: a count costs about what a small allocation does.

mod catalogue;

pub use catalogue::*;
use metrics::{Key, Label, Level, Metadata, with_recorder};

const METADATA: Metadata<'static> = Metadata::new("gristmill", Level::INFO, None);

/// Goes up only.
#[derive(Debug)]
pub struct Counter<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
}

/// Goes up and down.
#[derive(Debug)]
pub struct Gauge<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
}

/// How often which size came, in fixed steps.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
    bounds: &'static [f64],
}

/// A metric as the catalogue lists it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Listed {
    /// Its name, with its unit.
    pub name: &'static str,
    /// What values it has.
    pub shape: Shape,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// What values a metric has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// A number that goes up only.
    Counter,
    /// A number.
    Gauge,
    /// How many values are no larger than each of these.
    Histogram(&'static [f64]),
}

impl Shape {
    /// Its name in Prometheus.
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

    const fn listed(&'static self, help: &'static str) -> Listed {
        Listed { name: self.name, shape: Shape::Counter, labels: &self.labels, help }
    }

    /// So many more, under these values of its labels.
    pub fn add(&self, values: [&str; N], more: u64) {
        if more > 0 {
            self.of(values).increment(more);
        }
    }

    /// It has come to this, unless it is there already.
    pub fn reach(&self, values: [&str; N], total: u64) {
        self.of(values).absolute(total);
    }

    fn of(&self, values: [&str; N]) -> metrics::Counter {
        let key = key(self.name, self.labels, values);
        with_recorder(|recorder| recorder.register_counter(&key, &METADATA))
    }
}

impl<const N: usize> Gauge<N> {
    const fn new(name: &'static str, labels: [&'static str; N]) -> Self {
        Self { name, labels }
    }

    const fn listed(&'static self, help: &'static str) -> Listed {
        Listed { name: self.name, shape: Shape::Gauge, labels: &self.labels, help }
    }

    /// It is this now.
    pub fn set(&self, values: [&str; N], now: f64) {
        self.of(values).set(now);
    }

    /// One more.
    pub fn rise(&self, values: [&str; N]) {
        self.of(values).increment(1.0);
    }

    /// One less.
    pub fn fall(&self, values: [&str; N]) {
        self.of(values).decrement(1.0);
    }

    fn of(&self, values: [&str; N]) -> metrics::Gauge {
        let key = key(self.name, self.labels, values);
        with_recorder(|recorder| recorder.register_gauge(&key, &METADATA))
    }
}

impl<const N: usize> Histogram<N> {
    const fn new(name: &'static str, labels: [&'static str; N], bounds: &'static [f64]) -> Self {
        Self { name, labels, bounds }
    }

    const fn listed(&'static self, help: &'static str) -> Listed {
        Listed { name: self.name, shape: Shape::Histogram(self.bounds), labels: &self.labels, help }
    }

    /// One more, of this size.
    pub fn record(&self, values: [&str; N], size: f64) {
        let key = key(self.name, self.labels, values);
        with_recorder(|recorder| recorder.register_histogram(&key, &METADATA)).record(size);
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
    fn names_keep_to_the_rules_of_prometheus() {
        let names: BTreeSet<_> = CATALOGUE.iter().map(|listed| listed.name).collect();
        assert_eq!(names.len(), CATALOGUE.len(), "a name twice");
        for Listed { name, shape, labels, help } in CATALOGUE {
            assert!(name.starts_with("gristmill_"), "{name}");
            let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(plain(name) && labels.iter().all(|label| plain(label)), "{name}");
            assert_eq!(name.ends_with("_total"), *shape == Shape::Counter, "{name}");
            assert!(help.len() > 20 && !help.ends_with('.'), "{name}: {help}");
            if let Shape::Histogram(bounds) = shape {
                assert!(bounds.is_sorted() && bounds.len() <= 16, "{name}");
            }
        }
    }
}
