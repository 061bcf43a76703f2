//! Where everything is counted: a recorder for the facade `metrics`, with fixed steps, bounded in size, that can be
//! written down in the text format of Prometheus at any time.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use gristmill_shared::meter::{CATALOGUE, Shape};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder,
    SharedString, Unit,
};

/// How many series are kept. Ours are some hundreds, with a few kinds of job; beyond this what a job's own code counts
/// under ever new labels is not counted.
const SERIES_MAX: usize = 5_000;
/// The steps of a histogram that is not ours.
const STEPS: &[f64] = &[0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0];

/// All that is counted in this process.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    families: BTreeMap<String, Family>,
    series: usize,
}

/// The series of one name.
#[derive(Debug)]
struct Family {
    help: String,
    shape: Shape,
    /// By their labels as they are written.
    series: BTreeMap<String, Series>,
}

#[derive(Debug, Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Steps>),
}

/// How many values are no larger than which bound.
#[derive(Debug)]
struct Steps {
    bounds: &'static [f64],
    /// One more than there are bounds; each value is counted in one of them.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Book {
    /// An empty book for a process of this role, or of all if it is none of them: what has no labels begins with 0, so that
    /// it is there to be seen.
    pub(super) fn of(role: &str) -> Self {
        let book = Self::default();
        let roles = ["worker", "sink", "producer"];
        let prefixes = roles.map(|role| format!("gristmill_{role}_"));
        let (own, one) = (format!("gristmill_{role}_"), roles.contains(&role));
        for listed in CATALOGUE {
            let of_another =
                one && prefixes.iter().any(|other| *other != own && listed.name.starts_with(other));
            book.describe(listed.name, listed.shape, listed.help);
            if !of_another && listed.labels.is_empty() {
                book.series(&Key::from_static_name(listed.name), listed.shape);
            }
        }
        book
    }

    fn describe(&self, name: &str, shape: Shape, help: &str) {
        let mut pages = self.pages();
        let family = pages.families.entry(plain(name, true));
        family.or_insert_with(|| Family { help: String::new(), shape, series: BTreeMap::new() }).help =
            help.to_owned();
    }

    /// The series of this key. Nothing if there are too many, or if its name stands for something of another shape.
    fn series(&self, key: &Key, shape: Shape) -> Option<Series> {
        let mut pages = self.pages();
        let pages = &mut *pages;
        let full = pages.series >= SERIES_MAX;
        let name = plain(key.name(), true);
        let family = match pages.families.get_mut(&name) {
            Some(family) => family,
            None if full => return None,
            None => pages.families.entry(name).or_insert(Family {
                help: String::new(),
                shape,
                series: BTreeMap::new(),
            }),
        };
        if std::mem::discriminant(&family.shape) != std::mem::discriminant(&shape) {
            return None;
        }
        let labels = written(key.labels());
        if !family.series.contains_key(&labels) && full {
            return None;
        }
        let shape = family.shape; // with the bounds that the catalogue says
        let series = family.series.entry(labels).or_insert_with(|| {
            pages.series += 1;
            Series::new(shape)
        });
        Some(series.clone())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // what panics under it leaves a book that can be read
    }
}

impl Series {
    fn new(shape: Shape) -> Self {
        match shape {
            Shape::Counter => Self::Counter(Arc::default()),
            Shape::Gauge => Self::Gauge(Arc::default()),
            Shape::Histogram(bounds) => {
                let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
                Self::Histogram(Arc::new(Steps { bounds, counts, sum: AtomicU64::new(0) }))
            }
        }
    }
}

impl Recorder for Book {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), Shape::Counter, &help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), Shape::Gauge, &help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), Shape::Histogram(STEPS), &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, Shape::Counter) {
            Some(Series::Counter(cell)) => Counter::from_arc(cell),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, Shape::Gauge) {
            Some(Series::Gauge(cell)) => Gauge::from_arc(cell),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, Shape::Histogram(STEPS)) {
            Some(Series::Histogram(steps)) => Histogram::from_arc(steps),
            _ => Histogram::noop(),
        }
    }
}

impl HistogramFn for Steps {
    fn record(&self, value: f64) {
        let step = self.bounds.partition_point(|bound| *bound < value);
        CounterFn::increment(&self.counts[step], 1);
        GaugeFn::increment(&self.sum, value);
    }
}

/// The text format of Prometheus, version 0.0.4.
impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.pages();
        for (name, Family { help, shape, series }) in pages.families.iter() {
            if series.is_empty() {
                continue;
            }
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            writeln!(f, "# HELP {name} {help}\n# TYPE {name} {}", shape.as_str())?;
            for (labels, series) in series {
                match series {
                    Series::Counter(cell) => {
                        writeln!(f, "{name}{} {}", braced(labels, ""), cell.load(Ordering::Acquire))?;
                    }
                    Series::Gauge(cell) => {
                        let value = f64::from_bits(cell.load(Ordering::Acquire));
                        writeln!(f, "{name}{} {}", braced(labels, ""), number(value))?;
                    }
                    Series::Histogram(steps) => steps.write(f, name, labels)?,
                }
            }
        }
        Ok(())
    }
}

impl Steps {
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str, labels: &str) -> fmt::Result {
        let mut total = 0;
        for (place, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Acquire);
            let bound = self.bounds.get(place).map_or("+Inf".into(), |bound| number(*bound));
            writeln!(f, "{name}_bucket{} {total}", braced(labels, &format!("le=\"{bound}\"")))?;
        }
        let sum = number(f64::from_bits(self.sum.load(Ordering::Acquire)));
        writeln!(f, "{name}_sum{} {sum}\n{name}_count{} {total}", braced(labels, ""), braced(labels, ""))
    }
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value => value.to_string(), // NaN is NaN
    }
}

/// Labels as they are written, without braces.
fn written<'a>(labels: impl Iterator<Item = &'a Label>) -> String {
    let mut texts: Vec<String> = labels
        .map(|label| {
            let value = label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{}=\"{value}\"", plain(label.key(), false))
        })
        .collect();
    texts.sort_unstable(); // their order says nothing
    texts.join(",")
}

fn braced(labels: &str, last: &str) -> String {
    match (labels, last) {
        ("", "") => String::new(),
        (labels, "") => format!("{{{labels}}}"),
        ("", last) => format!("{{{last}}}"),
        (labels, last) => format!("{{{labels},{last}}}"),
    }
}

/// A name that Prometheus takes: of letters, digits and `_`, in the name of a metric `:` too, with no digit at first.
fn plain(name: &str, colons: bool) -> String {
    let taken = |it: char| it.is_ascii_alphanumeric() || it == '_' || (colons && it == ':');
    let text: String = name.chars().map(|it| if taken(it) { it } else { '_' }).collect();
    if text.starts_with(|it: char| it.is_ascii_digit()) || text.is_empty() {
        format!("_{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::meter::{Listed, SINK_COMMIT_SECONDS, WORKER_SLOTS, WORKER_TASKS};

    use super::*;

    fn counted(role: &str, count: impl FnOnce()) -> String {
        let book = Book::of(role);
        metrics::with_local_recorder(&book, count);
        book.to_string()
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|other| other == line)
    }

    #[test]
    fn what_is_counted_is_written_down_with_its_help_and_its_type() {
        let text = counted("worker", || {
            WORKER_TASKS.add(["spin", "done"], 3);
            WORKER_TASKS.add(["spin", "done"], 4);
            WORKER_SLOTS.set([], 8.0);
        });
        assert!(has(&text, "gristmill_worker_tasks_total{kind=\"spin\",outcome=\"done\"} 7"), "{text}");
        assert!(has(&text, "gristmill_worker_slots 8") && has(&text, "# TYPE gristmill_worker_slots gauge"));
        assert!(has(&text, "# HELP gristmill_worker_slots How many tasks the worker runs at a time"));
        assert!(has(&text, "gristmill_worker_handed_back_total 0"), "what was never counted is there");
        assert!(!text.contains("gristmill_sink_"), "{text}");
    }

    #[test]
    fn a_histogram_counts_each_value_up_to_its_bound() {
        let text = counted("sink", || {
            for seconds in [0.000_5, 0.003, 0.003, 99.0] {
                SINK_COMMIT_SECONDS.record([], seconds);
            }
        });
        let bucket = |bound: &str, count: u32| {
            has(&text, &format!("gristmill_sink_commit_seconds_bucket{{le=\"{bound}\"}} {count}"))
        };
        assert!(bucket("0.0005", 1) && bucket("0.002", 1) && bucket("0.005", 3), "{text}");
        assert!(bucket("5", 3) && bucket("+Inf", 4) && has(&text, "gristmill_sink_commit_seconds_count 4"));
    }

    #[test]
    fn what_jobs_count_stands_beside_it_whatever_they_call_it() {
        let text = counted("worker", || {
            metrics::describe_counter!("my.requests", "said\nso");
            metrics::counter!("my.requests", "to" => "a \"b\"\\\n", "2nd" => "x").increment(1);
            metrics::gauge!("my.requests").set(1.0); // something else by the same name
            metrics::gauge!("1st").set(f64::INFINITY);
        });
        assert!(has(&text, "my_requests{_2nd=\"x\",to=\"a \\\"b\\\"\\\\\\n\"} 1"), "{text}");
        assert!(has(&text, "# HELP my_requests said\\nso") && has(&text, "_1st +Inf"), "{text}");
        assert_eq!(text.matches("my_requests").count(), 3, "{text}");
    }

    #[test]
    fn ever_new_labels_come_to_an_end() {
        let text = counted("worker", || {
            for number in 0..2 * SERIES_MAX {
                metrics::counter!("greedy", "number" => number.to_string()).increment(1);
            }
            WORKER_SLOTS.set([], 8.0);
        });
        let series = text.lines().filter(|line| line.starts_with("greedy{")).count();
        assert!((SERIES_MAX - 100..SERIES_MAX).contains(&series), "{series}");
        assert!(has(&text, "gristmill_worker_slots 8"));
    }

    #[test]
    fn every_metric_of_ours_can_be_told_from_the_others() {
        for Listed { name, shape, .. } in CATALOGUE {
            let book = Book::of("none");
            assert!(book.series(&Key::from_static_name(name), *shape).is_some(), "{name}");
        }
    }
}
