//! Floats that are not finite are named, wherever they are: in a value, and in all that a job
//! sends.

use std::{collections::BTreeMap, ops::ControlFlow};

use serde::Deserialize;

use super::*;
use crate::{
    Job, JobError, TaskContext, TaskError, TaskIndex,
    testing::{Repeat, run_local},
};

#[derive(Serialize, Clone)]
enum Shape {
    Line(f64),
    Pair(f64, f32),
    Named { width: f64 },
}

#[derive(Serialize, Clone)]
struct Inner(f32);

#[derive(Serialize, Clone)]
struct Outer {
    name: &'static str,
    mean: Vec<f64>,
    maybe: Option<f64>,
    by_city: BTreeMap<&'static str, Vec<f32>>,
    by_id: BTreeMap<u8, Inner>,
    shape: Shape,
    nothing: (),
}

fn fine() -> Outer {
    Outer {
        name: "null",
        mean: vec![0.0, -0.0, f64::MAX, 5e-324],
        maybe: None,
        by_city: BTreeMap::from([("Rome", vec![1.0, 2.0])]),
        by_id: BTreeMap::from([(7, Inner(1.0))]),
        shape: Shape::Line(1.0),
        nothing: (),
    }
}

/// Puts a float somewhere.
type Change = fn(&mut Outer);

fn told(change: impl FnOnce(&mut Outer)) -> Option<String> {
    let mut outer = fine();
    change(&mut outer);
    let json = serde_json::to_vec(&outer).unwrap();
    check("output", &outer, &json).err().map(|error| error.to_string())
}

#[test]
fn finite_floats_and_nothing_are_fine() {
    assert_eq!(told(|_| ()), None);
    check("output", &Some(()), b"null").unwrap();
}

#[test]
fn a_float_that_is_not_finite_is_named() {
    let cases: [(&str, Change); 9] = [
        ("output.mean[2] is NaN", |it| it.mean[2] = f64::NAN),
        ("output.maybe is NaN", |it| it.maybe = Some(f64::NAN)),
        ("output.maybe is infinite", |it| it.maybe = Some(f64::INFINITY)),
        ("output.by_city[\"Rome\"][1] is negatively infinite", |it| {
            it.by_city.insert("Rome", vec![0.0, f32::NEG_INFINITY]);
        }),
        ("output.by_id[7] is NaN", |it| {
            it.by_id.insert(7, Inner(f32::NAN));
        }),
        ("output.shape.Line is NaN", |it| it.shape = Shape::Line(f64::NAN)),
        ("output.shape.Pair[1] is infinite", |it| it.shape = Shape::Pair(0.0, f32::INFINITY)),
        ("output.shape.Named.width is NaN", |it| it.shape = Shape::Named { width: f64::NAN }),
        ("output.mean[0] is NaN", |it| it.mean = vec![f64::NAN; 3]),
    ];
    for (expected, change) in cases {
        let told = told(change).unwrap_or_default();
        assert!(told.starts_with(expected), "expected {expected}: {told}");
    }
}

#[test]
fn the_value_itself_may_be_refused() {
    let refused = check("report", &f64::NAN, b"null").unwrap_err().to_string();
    assert!(refused.starts_with("report is NaN, but only finite"), "{refused}");
}

#[test]
fn a_map_that_gives_keys_and_values_apart_is_named() {
    struct Apart;
    impl Serialize for Apart {
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
    let refused = check("task", &Apart, b"null").unwrap_err().to_string();
    assert!(refused.starts_with("task[\"b\"] is NaN"), "{refused}");
}

/// A job with a float in each value that travels, one of which is NaN.
#[derive(Serialize, Deserialize)]
struct Strange {
    factor: f64,
    nan_in: String,
}

impl Strange {
    fn float(&self, of: &str) -> f64 {
        if self.nan_in == of { f64::NAN } else { 1.5 }
    }
}

#[derive(Serialize, Deserialize)]
struct Answer {
    mean: Vec<f64>,
    maybe: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize, Default)]
struct Report {
    by_index: BTreeMap<u64, f64>,
}

impl Job for Strange {
    const KIND: &'static str = "strange";
    type Task = (u64, f64);
    type Output = Answer;
    type Report = Report;

    fn split(&self) -> impl Iterator<Item = Result<Self::Task, JobError>> + Send {
        (0..2).map(|index| Ok((index, if index == 1 { self.float("task") } else { 0.0 })))
    }
    fn process(&self, (index, _): Self::Task, _: &TaskContext) -> Result<Answer, TaskError> {
        let maybe = if index == 1 { self.float("output") } else { 0.0 };
        Ok(Answer { mean: vec![1.0], maybe: Some(maybe) })
    }
    fn collect(&self, report: &mut Report, index: TaskIndex, output: Answer) -> ControlFlow<()> {
        assert!(output.mean.len() == 1 && output.maybe.is_some(), "Some(NaN) became None");
        report.by_index.insert(index.0, self.float("report"));
        ControlFlow::Continue(())
    }
}

#[test]
fn every_value_of_a_job_is_checked() {
    let run = |factor: f64, nan_in: &str| run_local(&Strange { factor, nan_in: nan_in.into() }, Repeat(2));
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
