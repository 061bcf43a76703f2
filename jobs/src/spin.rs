//! `spin`: a synthetic load for measurements and fault tests.

mod fixed_work;
mod floats;
mod load;
mod misbehave;

use std::{hint::black_box, ops::ControlFlow};

use gristmill_shared::{Account, Conclusion, Job, JobError, Plan, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use self::{
    fixed_work::SpinWork,
    floats::{FloatFolds, SpinOutput},
    load::SpinTask,
    misbehave::{Misbehaviour, MisbehaviourKind},
};

/// The largest payload of a task, in bytes. The task stays below the limit of 1 MiB for any task.
const MAX_PAYLOAD: u32 = 1_000_000;

/// Run tasks that each do a fixed amount of work, for measurements and fault tests.
///
/// The amount is measured here, once, and is part of the job. A worker does it
/// without reading the clock, so a task that was interrupted takes longer.
///
/// Examples:
///   gristmill run spin --tasks 1000000
///   producer submit spin --tasks 10000 --micros 500 --payload 1000 --wait
///   producer submit spin --tasks 200 --micros 50000..500000 --wait
///   producer submit spin --tasks 10000 --fail-rate 0.05 --seed 7 --wait
///   producer submit spin --tasks 10000 --poison 4711 --wait
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Spin {
    /// Number of tasks
    #[arg(long, value_name = "N")]
    pub tasks: u64,

    /// Work of one task as time on this machine, in µs; LEAST..MOST is random between the two, both
    /// included
    #[arg(long = "micros", value_name = "D", default_value = "0")]
    #[serde(default)]
    pub work: SpinWork,

    /// Bytes of text in each task, at most 1000000
    #[arg(long, value_name = "BYTES", default_value_t)]
    #[serde(default)]
    pub payload: u32,

    /// Share of tasks, 0 to 1, that fail their first one or two attempts and then succeed
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_share)]
    #[serde(default)]
    pub fail_rate: f64,

    /// A task that aborts the process of its worker, like a crash in native code; may be given
    /// several times
    #[arg(long, value_name = "INDEX")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poison: Vec<u64>,

    /// A task that allocates memory until its worker dies; limit the workers' memory (`ulimit -v`),
    /// or the whole machine runs out of it
    #[arg(long, value_name = "INDEX")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hog: Vec<u64>,

    /// A task that sleeps forever and ignores a stop; ends only with --task-timeout
    #[arg(long, value_name = "INDEX")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hang: Vec<u64>,

    /// A task like that of --hang that computes forever instead of sleeping
    #[arg(long, value_name = "INDEX")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hang_busy: Vec<u64>,

    /// A task that panics at each attempt; may be given several times
    #[arg(long, value_name = "INDEX")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub panic: Vec<u64>,

    /// A task that does not do its work and ignores a stop, as INDEX=HOW with spin, sleep, await,
    /// command:SECONDS, abort or overflow as HOW; may be given several times
    #[arg(long, value_name = "INDEX=HOW")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub misbehave: Vec<Misbehaviour>,

    /// Put a random finite float into each output, and their exact sum into the report
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub floats: bool,

    /// Seed of the failing tasks, of work between two bounds, and of payloads and floats
    #[arg(long, value_name = "S", default_value_t)]
    #[serde(default)]
    pub seed: u64,
}

/// The report of a spin, which proves that each task counted once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpinReport {
    /// The number of tasks with an output.
    pub count: u64,
    /// The exact sum of their indices. Text in JSON, since many readers round numbers beyond 2^53.
    #[serde(with = "as_text")]
    pub sum: u128,
    /// The folds of the floats, if the spin has floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floats: Option<FloatFolds>,
}

fn is_false(it: &bool) -> bool {
    !it
}

impl Spin {
    /// Returns the work of this task as time on the machine where the job was submitted,
    /// undisturbed, in µs. A function of index and seed, so that the ideal schedule of a job can be
    /// computed.
    #[must_use]
    pub fn task_micros(&self, index: TaskIndex) -> u32 {
        // Another text than for `failures`, so that a task's length and its failures are
        // independent.
        self.work.draw_micros(|| xxh3_64_with_seed(format!("micros {}", index.0).as_bytes(), self.seed))
    }

    /// Returns the output of this task.
    fn output(&self, index: u64) -> SpinOutput {
        SpinOutput { index, float: self.floats.then(|| floats::random_float(index, self.seed)) }
    }

    /// Computes the report of a run in which each task counted once, from the parameters alone; no
    /// value was encoded or sent.
    #[must_use]
    pub fn expected(&self) -> SpinReport {
        let mut report = SpinReport::default();
        for index in 0..self.tasks {
            let _ = self.collect(&mut report, TaskIndex(index), self.output(index)); // a spin never ends early
        }
        report
    }

    /// Returns the number of attempts of this task that fail: none, one or two.
    fn failures(&self, index: u64) -> u32 {
        let draw = xxh3_64_with_seed(&index.to_le_bytes(), self.seed);
        let share = (draw >> 11) as f64 / (1_u64 << 53) as f64; // 53 random bits: even over 0..1, never 1
        if share < self.fail_rate { 1 + (draw & 1) as u32 } else { 0 }
    }
}

impl Job for Spin {
    const KIND: &'static str = "spin";
    type Task = SpinTask;
    type Output = SpinOutput;
    type Report = SpinReport;

    fn plan(&self) -> Result<Plan, JobError> {
        let payload = self.payload;
        if payload > MAX_PAYLOAD {
            return Err(JobError::new(format!("--payload {payload}: expected at most {MAX_PAYLOAD} bytes")));
        }
        if !is_share(&self.fail_rate) {
            return Err(JobError::new(format!("--fail-rate {}: {SHARE_EXPECTED}", self.fail_rate)));
        }
        self.work.check()?;
        Ok(Plan::of(self.tasks))
    }

    fn split(&self) -> impl Iterator<Item = Result<SpinTask, JobError>> + Send {
        self.split_from(TaskIndex(0))
    }

    fn split_from(&self, index: TaskIndex) -> impl Iterator<Item = Result<SpinTask, JobError>> + Send {
        (index.0..self.tasks).map(|index| Ok(SpinTask::new(index, self.payload, self.seed)))
    }

    fn process(&self, task: SpinTask, cx: &TaskContext) -> Result<SpinOutput, TaskError> {
        let (index, failures) = (task.index(), self.failures(task.index()));
        if self.poison.contains(&index) {
            std::process::abort();
        }
        if self.hog.contains(&index) {
            exhaust_memory();
        }
        if self.hang.contains(&index) {
            loop {
                std::thread::park();
            }
        }
        if self.hang_busy.contains(&index) {
            loop {
                std::hint::spin_loop();
            }
        }
        if self.panic.contains(&index) {
            panic_as_asked(index);
        }
        if let Some(misbehaviour) = self.misbehave.iter().find(|task| task.index == index) {
            misbehaviour.perform();
        }
        self.work.perform(self.task_micros(TaskIndex(index)), cx)?;
        if cx.attempt() <= failures {
            return Err(TaskError::failed(format!(
                "try {} of task {index} fails, as --fail-rate asks; it succeeds after {failures}",
                cx.attempt()
            )));
        }
        Ok(self.output(index))
    }

    fn collect(&self, report: &mut SpinReport, index: TaskIndex, output: SpinOutput) -> ControlFlow<()> {
        report.count += 1;
        report.sum += u128::from(output.index);
        if let Some(float) = output.float {
            report.floats.get_or_insert_default().add(index, float);
        }
        ControlFlow::Continue(())
    }

    fn conclude(&self, report: &SpinReport, account: &Account) -> Conclusion {
        let floats = report.floats.as_ref().map_or_else(String::new, |floats| format!(", {floats}"));
        Conclusion::if_complete(format!("{} tasks, sum {}{floats}", report.count, report.sum), account)
    }
}

/// Allocates memory, and touches it, until there is none; then the allocator aborts the process.
fn exhaust_memory() -> ! {
    const CHUNK_BYTES: usize = 64 << 20;
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; CHUNK_BYTES])); // ones, since zeros would take no memory
        black_box(&held);
    }
}

fn panic_as_asked(index: u64) -> ! {
    panic!("task {index} panics, as --panic asks")
}

const SHARE_EXPECTED: &str = "expected a share from 0 to 1";

fn is_share(rate: &f64) -> bool {
    (0.0..=1.0).contains(rate)
}

/// Parses a share on the command line, which must refuse NaN itself since a spec cannot carry it.
fn parse_share(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(is_share).ok_or(SHARE_EXPECTED)
}

/// The serde form of a number as text.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{FailureKind, JobId, StopSignal};

    use super::*;

    fn spin(tasks: u64) -> Spin {
        Spin { tasks, ..Spin::default() }
    }

    #[test]
    fn plan_counts_tasks() {
        assert_eq!(spin(1_000_000).plan().unwrap(), Plan::of(1_000_000));
        assert_eq!(spin(0).split().count(), 0);
    }

    #[test]
    fn bad_specs_are_refused() {
        for (bad, why) in [
            (Spin { fail_rate: -0.1, ..spin(1) }, "--fail-rate -0.1: expected a share from 0 to 1"),
            (Spin { fail_rate: f64::NAN, ..spin(1) }, "--fail-rate NaN"),
            (Spin { fail_rate: 1.5, ..spin(1) }, "--fail-rate 1.5"),
            (Spin { payload: 1_000_001, ..spin(1) }, "--payload 1000001: expected at most 1000000 bytes"),
            (serde_json::from_str(r#"{"tasks":1,"work":{"micros":5}}"#).unwrap(), "5 µs of work"),
            (
                serde_json::from_str(r#"{"tasks":1,"work":{"micros":0,"micros_to":9}}"#).unwrap(),
                "9 µs of work of 0 iterations",
            ),
            (Spin { work: "9..3".parse().unwrap(), ..spin(1) }, "--micros 9..3: the range is reversed"),
        ] {
            let error = bad.plan().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn failing_share_succeeds_later() {
        let job = Spin { fail_rate: 0.25, seed: 7, ..spin(10_000) };
        let mut by_failures = [0; 3];
        for index in 0..job.tasks {
            let tried = |failed| {
                let cx = TaskContext::new(JobId::generate(), TaskIndex(index), failed, StopSignal::new());
                job.process(SpinTask::Bare(index), &cx)
            };
            let mut failed = 0;
            while let Err(error) = tried(failed) {
                assert!(
                    matches!(error.into_kind(), FailureKind::Failed(_)),
                    "a failure that is not tried again"
                );
                failed += 1;
            }
            by_failures[failed as usize] += 1;
            assert_eq!(tried(failed).unwrap().index, index);
        }
        let [none, once, twice] = by_failures;
        assert!((7_300..7_700).contains(&none) && (1_100..1_400).contains(&once), "{by_failures:?}");
        assert_eq!(none + once + twice, 10_000);
        let other = Spin { seed: 8, ..job.clone() };
        assert!(
            (0..100).any(|index| job.failures(index) != other.failures(index)),
            "the seed changes nothing"
        );
    }

    #[test]
    fn lengths_are_even_and_repeatable() {
        let job = |seed| Spin { work: SpinWork::between(100..=199), seed, ..spin(10_000) };
        let lengths =
            |job: Spin| (0..job.tasks).map(|index| job.task_micros(TaskIndex(index))).collect::<Vec<_>>();
        let some = lengths(job(1));
        assert_eq!(some, lengths(job(1)));
        assert_ne!(some, lengths(job(2)));
        let mut tenths = [0; 10];
        some.iter().for_each(|micros| tenths[(*micros - 100) as usize / 10] += 1); // panics beyond the bounds
        assert!(tenths.iter().all(|tasks| (900..1100).contains(tasks)), "{tenths:?}");

        let same = Spin { work: SpinWork::micros(7), ..spin(9) };
        assert!(lengths(same).iter().all(|micros| *micros == 7));
    }

    #[test]
    fn spec_has_a_range_only_if_set() {
        let json = |work| serde_json::to_value(Spin { work, ..spin(1) }).unwrap()["work"].take();
        assert_eq!(json(SpinWork::default()), serde_json::json!({"micros": 0, "iterations_per_micro": 0}));
        let work = json(SpinWork::between(3..=9));
        assert_eq!((&work["micros"], &work["micros_to"]), (&3.into(), &9.into()));
        assert_eq!(
            serde_json::from_value::<SpinWork>(work.clone()).unwrap().draw_micros(|| u64::MAX),
            9,
            "{work}"
        );
    }

    #[test]
    fn fail_rate_bounds_are_exact() {
        let (none, all) = (spin(1), Spin { fail_rate: 1.0, ..spin(1) });
        assert!((0..1000).all(|index| none.failures(index) == 0 && all.failures(index) > 0));
    }

    #[test]
    fn sum_is_exact_beyond_u64() {
        let mut report = SpinReport::default();
        for _ in 0..3 {
            let output = SpinOutput { index: u64::MAX, float: None };
            assert!(spin(0).collect(&mut report, TaskIndex(0), output).is_continue());
        }
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(json, r#"{"count":3,"sum":"55340232221128654845"}"#);
        assert_eq!(serde_json::from_str::<SpinReport>(&json).unwrap(), report);
        let conclusion = spin(0).conclude(&report, &Account::default());
        assert_eq!(conclusion, Conclusion::answer("3 tasks, sum 55340232221128654845"));
    }

    #[test]
    fn spec_fields_have_defaults() {
        assert_eq!(serde_json::from_str::<Spin>(r#"{"tasks":9}"#).unwrap(), spin(9));
    }
}
