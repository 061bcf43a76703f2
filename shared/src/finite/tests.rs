//! Tests that floats that are not finite are refused by name, in a value and in all messages of a
//! job.

use std::{collections::BTreeMap, ops::ControlFlow};

use serde::Deserialize;

use super::*;
use crate::{
    Job, JobError, TaskContext, TaskError, TaskIndex,
    testing::{Repeat, run_local},
};

#[derive(Serialize, Clone)]
enum SampleShape {
    Line(f64),
    Pair(f64, f32),
    Named { width: f64 },
}

#[derive(Serialize, Clone)]
struct InnerSample(f32);

#[derive(Serialize, Clone)]
struct OuterSample {
    name: &'static str,
    mean: Vec<f64>,
    maybe: Option<f64>,
    by_city: BTreeMap<&'static str, Vec<f32>>,
    by_id: BTreeMap<u8, InnerSample>,
    shape: SampleShape,
    nothing: (),
}

fn fine() -> OuterSample {
    OuterSample {
        name: "null",
        mean: vec![0.0, -0.0, f64::MAX, 5e-324],
        maybe: None,
        by_city: BTreeMap::from([("Rome", vec![1.0, 2.0])]),
        by_id: BTreeMap::from([(7, InnerSample(1.0))]),
        shape: SampleShape::Line(1.0),
        nothing: (),
    }
}

/// A change of one float of a sample.
type SampleChange = fn(&mut OuterSample);

fn refusal(change: impl FnOnce(&mut OuterSample)) -> Option<String> {
    let mut outer = fine();
    change(&mut outer);
    let json = serde_json::to_vec(&outer).unwrap();
    check("output", &outer, &json).err().map(|error| error.to_string())
}

#[test]
fn finite_floats_pass() {
    assert_eq!(refusal(|_| ()), None);
    check("output", &Some(()), b"null").unwrap();
}

#[test]
fn nonfinite_float_is_named() {
    let cases: [(&str, SampleChange); 9] = [
        ("output.mean[2] is NaN", |it| it.mean[2] = f64::NAN),
        ("output.maybe is NaN", |it| it.maybe = Some(f64::NAN)),
        ("output.maybe is infinite", |it| it.maybe = Some(f64::INFINITY)),
        ("output.by_city[\"Rome\"][1] is negatively infinite", |it| {
            it.by_city.insert("Rome", vec![0.0, f32::NEG_INFINITY]);
        }),
        ("output.by_id[7] is NaN", |it| {
            it.by_id.insert(7, InnerSample(f32::NAN));
        }),
        ("output.shape.Line is NaN", |it| it.shape = SampleShape::Line(f64::NAN)),
        ("output.shape.Pair[1] is infinite", |it| it.shape = SampleShape::Pair(0.0, f32::INFINITY)),
        ("output.shape.Named.width is NaN", |it| it.shape = SampleShape::Named { width: f64::NAN }),
        ("output.mean[0] is NaN", |it| it.mean = vec![f64::NAN; 3]),
    ];
    for (expected, change) in cases {
        let text = refusal(change).unwrap_or_default();
        assert!(text.starts_with(expected), "expected {expected}: {text}");
    }
}

#[test]
fn bare_nan_is_refused() {
    let refused = check("report", &f64::NAN, b"null").unwrap_err().to_string();
    assert!(refused.starts_with("report is NaN, but only finite"), "{refused}");
}

#[test]
fn split_map_entry_is_named() {
    struct SplitEntries;
    impl Serialize for SplitEntries {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use ser::SerializeMap as _;
            let mut map = serializer.serialize_map(None)?;
            map.serialize_key("a")?;
            map.serialize_value(&1.0)?;
            map.serialize_key("b")?;
            map.serialize_value(&f64::NAN)?;
            map.end()
        }
    }
    let refused = check("task", &SplitEntries, b"null").unwrap_err().to_string();
    assert!(refused.starts_with("task[\"b\"] is NaN"), "{refused}");
}

/// A job with a float in each value that travels, one of which is NaN.
#[derive(Serialize, Deserialize)]
struct NanJob {
    factor: f64,
    nan_in: String,
}

impl NanJob {
    fn float_for(&self, place: &str) -> f64 {
        if self.nan_in == place { f64::NAN } else { 1.5 }
    }
}

#[derive(Serialize, Deserialize)]
struct NanOutput {
    mean: Vec<f64>,
    maybe: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize, Default)]
struct NanReport {
    by_index: BTreeMap<u64, f64>,
}

impl Job for NanJob {
    const KIND: &'static str = "strange";
    type Task = (u64, f64);
    type Output = NanOutput;
    type Report = NanReport;

    fn split(&self) -> impl Iterator<Item = Result<Self::Task, JobError>> + Send {
        (0..2).map(|index| Ok((index, if index == 1 { self.float_for("task") } else { 0.0 })))
    }
    fn process(&self, (index, _): Self::Task, _: &TaskContext) -> Result<NanOutput, TaskError> {
        let maybe = if index == 1 { self.float_for("output") } else { 0.0 };
        Ok(NanOutput { mean: vec![1.0], maybe: Some(maybe) })
    }
    fn collect(&self, report: &mut NanReport, index: TaskIndex, output: NanOutput) -> ControlFlow<()> {
        assert!(output.mean.len() == 1 && output.maybe.is_some(), "Some(NaN) became None");
        report.by_index.insert(index.0, self.float_for("report"));
        ControlFlow::Continue(())
    }
}

#[test]
fn every_job_value_is_checked() {
    let run = |factor: f64, nan_in: &str| run_local(&NanJob { factor, nan_in: nan_in.into() }, Repeat(2));
    let error = |factor, nan_in| run(factor, nan_in).unwrap_err().to_string();
    let spec = error(f64::INFINITY, "");
    assert!(spec.starts_with("spec.factor is infinite"), "{spec}");
    let task = error(1.0, "task");
    assert!(task.starts_with("split failed at task 1: task[1] is NaN"), "{task}");
    let report = error(1.0, "report");
    assert!(report.starts_with("report.by_index[") && report.contains("] is NaN"), "{report}");

    let outcome = run(1.0, "output").unwrap();
    assert_eq!((outcome.account.done, outcome.account.failed), (1, 1));
    let why = &outcome.failures[&TaskIndex(1)];
    assert!(why.contains("Rejected(\"output.maybe is NaN, but only finite floats"), "{why}");
    assert!(run(1.0, "").unwrap().conclusion.answered);
}
