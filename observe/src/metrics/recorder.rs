//! A recorder for the facade `metrics`, with fixed buckets and a bounded number of series, which
//! renders itself in the text format of Prometheus.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use gristmill_shared::metrics::{METRIC_CATALOGUE, MetricType};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder,
    SharedString, Unit,
};

/// The most series that are kept. Gristmill's own are some hundreds, with a few kinds of job.
/// Beyond this number, values that a job's own code records under new labels are dropped.
const SERIES_MAX: usize = 5_000;
/// The bounds of a histogram that is not in the catalogue.
const DEFAULT_BUCKETS: &[f64] = &[0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0];

/// A recorder of all metrics of this process.
#[derive(Debug, Default)]
pub(super) struct PrometheusRecorder(Mutex<MetricRegistry>);

#[derive(Debug, Default)]
struct MetricRegistry {
    families: BTreeMap<String, MetricFamily>,
    series: usize,
}

/// The series of one name.
#[derive(Debug)]
struct MetricFamily {
    help: String,
    shape: MetricType,
    /// The series by their formatted labels.
    series: BTreeMap<String, MetricSeries>,
}

#[derive(Debug, Clone)]
enum MetricSeries {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<HistogramBuckets>),
}

/// A histogram: a count for each bound, and the sum of all values.
#[derive(Debug)]
struct HistogramBuckets {
    bounds: &'static [f64],
    /// The number of values in each bucket, one more than there are bounds.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl PrometheusRecorder {
    /// Creates an empty recorder for a process of this role, or of all roles if it is none of them.
    /// A metric without labels starts at 0, so that it is visible before its first value.
    pub(super) fn for_role(role: &str) -> Self {
        let recorder = Self::default();
        let roles = ["worker", "sink", "producer"];
        let prefixes = roles.map(|role| format!("gristmill_{role}_"));
        let (own, has_one_role) = (format!("gristmill_{role}_"), roles.contains(&role));
        for listed in METRIC_CATALOGUE {
            let is_of_other_role =
                has_one_role && prefixes.iter().any(|other| *other != own && listed.name.starts_with(other));
            recorder.describe(listed.name, listed.shape, listed.help);
            if !is_of_other_role && listed.labels.is_empty() {
                recorder.series(&Key::from_static_name(listed.name), listed.shape);
            }
        }
        recorder
    }

    fn describe(&self, name: &str, shape: MetricType, help: &str) {
        let mut registry = self.registry();
        let family = registry.families.entry(sanitize_name(name, true));
        family.or_insert_with(|| MetricFamily { help: String::new(), shape, series: BTreeMap::new() }).help =
            help.to_owned();
    }

    /// Returns the series of this key. `None` if there are too many, or if the name has another
    /// shape.
    fn series(&self, key: &Key, shape: MetricType) -> Option<MetricSeries> {
        let mut registry = self.registry();
        let registry = &mut *registry;
        let full = registry.series >= SERIES_MAX;
        let name = sanitize_name(key.name(), true);
        let family = match registry.families.get_mut(&name) {
            Some(family) => family,
            None if full => return None,
            None => registry.families.entry(name).or_insert(MetricFamily {
                help: String::new(),
                shape,
                series: BTreeMap::new(),
            }),
        };
        if std::mem::discriminant(&family.shape) != std::mem::discriminant(&shape) {
            return None;
        }
        let labels = format_labels(key.labels());
        if !family.series.contains_key(&labels) && full {
            return None;
        }
        let shape = family.shape; // with the bounds of the catalogue
        let series = family.series.entry(labels).or_insert_with(|| {
            registry.series += 1;
            MetricSeries::new(shape)
        });
        Some(series.clone())
    }

    fn registry(&self) -> MutexGuard<'_, MetricRegistry> {
        // A panic under the lock leaves a registry that can be read.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetricSeries {
    fn new(shape: MetricType) -> Self {
        match shape {
            MetricType::Counter => Self::Counter(Arc::default()),
            MetricType::Gauge => Self::Gauge(Arc::default()),
            MetricType::Histogram(bounds) => {
                let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
                Self::Histogram(Arc::new(HistogramBuckets { bounds, counts, sum: AtomicU64::new(0) }))
            }
        }
    }
}

impl Recorder for PrometheusRecorder {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), MetricType::Counter, &help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), MetricType::Gauge, &help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), MetricType::Histogram(DEFAULT_BUCKETS), &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, MetricType::Counter) {
            Some(MetricSeries::Counter(cell)) => Counter::from_arc(cell),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, MetricType::Gauge) {
            Some(MetricSeries::Gauge(cell)) => Gauge::from_arc(cell),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, MetricType::Histogram(DEFAULT_BUCKETS)) {
            Some(MetricSeries::Histogram(buckets)) => Histogram::from_arc(buckets),
            _ => Histogram::noop(),
        }
    }
}

impl HistogramFn for HistogramBuckets {
    fn record(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        CounterFn::increment(&self.counts[bucket], 1);
        GaugeFn::increment(&self.sum, value);
    }
}

/// The text format of Prometheus, version 0.0.4.
impl fmt::Display for PrometheusRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registry = self.registry();
        for (name, MetricFamily { help, shape, series }) in registry.families.iter() {
            if series.is_empty() {
                continue;
            }
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            writeln!(f, "# HELP {name} {help}\n# TYPE {name} {}", shape.as_str())?;
            for (labels, series) in series {
                match series {
                    MetricSeries::Counter(cell) => {
                        writeln!(f, "{name}{} {}", with_braces(labels, ""), cell.load(Ordering::Acquire))?;
                    }
                    MetricSeries::Gauge(cell) => {
                        let value = f64::from_bits(cell.load(Ordering::Acquire));
                        writeln!(f, "{name}{} {}", with_braces(labels, ""), format_number(value))?;
                    }
                    MetricSeries::Histogram(buckets) => buckets.write(f, name, labels)?,
                }
            }
        }
        Ok(())
    }
}

impl HistogramBuckets {
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str, labels: &str) -> fmt::Result {
        let mut total = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Acquire);
            let bound = self.bounds.get(index).map_or("+Inf".into(), |bound| format_number(*bound));
            writeln!(f, "{name}_bucket{} {total}", with_braces(labels, &format!("le=\"{bound}\"")))?;
        }
        let sum = format_number(f64::from_bits(self.sum.load(Ordering::Acquire)));
        writeln!(
            f,
            "{name}_sum{} {sum}\n{name}_count{} {total}",
            with_braces(labels, ""),
            with_braces(labels, "")
        )
    }
}

fn format_number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value => value.to_string(), // also NaN
    }
}

/// Formats labels, without braces.
fn format_labels<'a>(labels: impl Iterator<Item = &'a Label>) -> String {
    let mut texts: Vec<String> = labels
        .map(|label| {
            let value = label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{}=\"{value}\"", sanitize_name(label.key(), false))
        })
        .collect();
    texts.sort_unstable(); // the order of labels has no meaning
    texts.join(",")
}

fn with_braces(labels: &str, last: &str) -> String {
    match (labels, last) {
        ("", "") => String::new(),
        (labels, "") => format!("{{{labels}}}"),
        ("", last) => format!("{{{last}}}"),
        (labels, last) => format!("{{{labels},{last}}}"),
    }
}

/// Returns a name that Prometheus accepts: letters, digits and `_`, in the name of a metric also
/// `:`, and no digit at the start.
fn sanitize_name(name: &str, colons: bool) -> String {
    let allowed = |it: char| it.is_ascii_alphanumeric() || it == '_' || (colons && it == ':');
    let text: String = name.chars().map(|it| if allowed(it) { it } else { '_' }).collect();
    if text.starts_with(|it: char| it.is_ascii_digit()) || text.is_empty() {
        format!("_{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::metrics::{MetricSpec, SINK_COMMIT_SECONDS, WORKER_SLOTS, WORKER_TASKS};

    use super::*;

    fn recorded(role: &str, count: impl FnOnce()) -> String {
        let recorder = PrometheusRecorder::for_role(role);
        metrics::with_local_recorder(&recorder, count);
        recorder.to_string()
    }

    fn has_line(text: &str, line: &str) -> bool {
        text.lines().any(|other| other == line)
    }

    #[test]
    fn metrics_have_help_and_type() {
        let text = recorded("worker", || {
            WORKER_TASKS.add(["spin", "done"], 3);
            WORKER_TASKS.add(["spin", "done"], 4);
            WORKER_SLOTS.set([], 8.0);
        });
        assert!(has_line(&text, "gristmill_worker_tasks_total{kind=\"spin\",outcome=\"done\"} 7"), "{text}");
        assert!(
            has_line(&text, "gristmill_worker_slots 8")
                && has_line(&text, "# TYPE gristmill_worker_slots gauge")
        );
        assert!(has_line(
            &text,
            "# HELP gristmill_worker_slots Number of tasks that the worker runs at a time"
        ));
        assert!(has_line(&text, "gristmill_worker_handed_back_total 0"), "what was never counted is there");
        assert!(!text.contains("gristmill_sink_"), "{text}");
    }

    #[test]
    fn histogram_counts_up_to_bound() {
        let text = recorded("sink", || {
            for seconds in [0.000_5, 0.003, 0.003, 99.0] {
                SINK_COMMIT_SECONDS.record([], seconds);
            }
        });
        let bucket = |bound: &str, count: u32| {
            has_line(&text, &format!("gristmill_sink_commit_seconds_bucket{{le=\"{bound}\"}} {count}"))
        };
        assert!(bucket("0.0005", 1) && bucket("0.002", 1) && bucket("0.005", 3), "{text}");
        assert!(
            bucket("5", 3) && bucket("+Inf", 4) && has_line(&text, "gristmill_sink_commit_seconds_count 4")
        );
    }

    #[test]
    fn job_metrics_are_sanitized() {
        let text = recorded("worker", || {
            metrics::describe_counter!("my.requests", "said\nso");
            metrics::counter!("my.requests", "to" => "a \"b\"\\\n", "2nd" => "x").increment(1);
            metrics::gauge!("my.requests").set(1.0); // another shape under the same name
            metrics::gauge!("1st").set(f64::INFINITY);
        });
        assert!(has_line(&text, "my_requests{_2nd=\"x\",to=\"a \\\"b\\\"\\\\\\n\"} 1"), "{text}");
        assert!(has_line(&text, "# HELP my_requests said\\nso") && has_line(&text, "_1st +Inf"), "{text}");
        assert_eq!(text.matches("my_requests").count(), 3, "{text}");
    }

    #[test]
    fn series_are_bounded() {
        let text = recorded("worker", || {
            for number in 0..2 * SERIES_MAX {
                metrics::counter!("greedy", "number" => number.to_string()).increment(1);
            }
            WORKER_SLOTS.set([], 8.0);
        });
        let series = text.lines().filter(|line| line.starts_with("greedy{")).count();
        assert!((SERIES_MAX - 100..SERIES_MAX).contains(&series), "{series}");
        assert!(has_line(&text, "gristmill_worker_slots 8"));
    }

    #[test]
    fn catalogue_names_are_distinct() {
        for MetricSpec { name, shape, .. } in METRIC_CATALOGUE {
            let recorder = PrometheusRecorder::for_role("none");
            assert!(recorder.series(&Key::from_static_name(name), *shape).is_some(), "{name}");
        }
    }
}
