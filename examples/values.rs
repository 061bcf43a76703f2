//! Values of every sort as outputs and in the report. At the end the job draws all of them once
//! more, where nothing travels, and compares bit by bit.
//!
//! ```text
//! cargo run --example values -- run values --tasks 1000
//! ```

use std::{collections::BTreeMap, process::ExitCode, thread::park_timeout, time::Duration};

use gristmill::{
    fold::{ExactSum, Tree},
    prelude::*,
};
use serde::{Deserialize, Serialize};

/// Send values of every sort around, and compare their bits
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Values {
    /// Number of tasks
    #[arg(long)]
    tasks: u64,
    /// Time that each takes, in milliseconds
    #[arg(long, default_value_t = 0)]
    millis: u64,
}

type Sample = (f64, f32, u64, i128, char, Option<f64>, BTreeMap<String, BTreeMap<u64, f64>>);
type Report = (BTreeMap<u64, Sample>, ExactSum, Tree<f64>);

impl Job for Values {
    const KIND: &'static str = "values";
    type Task = u64;
    type Output = Sample;
    type Report = Report;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..self.tasks).map(Ok)
    }

    fn process(&self, task: u64, _: &TaskContext) -> Result<Sample, TaskError> {
        park_timeout(Duration::from_millis(self.millis));
        Ok(draw(task))
    }

    fn collect(&self, (all, sum, tree): &mut Report, index: TaskIndex, output: Sample) -> ControlFlow<()> {
        *sum += output.0;
        tree.add(index, output.0, |left, right| left / 2.0 + right / 2.0);
        all.insert(index.0, output);
        ControlFlow::Continue(())
    }

    fn conclude(&self, report: &Report, account: &Account) -> Conclusion {
        let mut drawn = Report::default();
        for index in 0..self.tasks {
            let _ = self.collect(&mut drawn, TaskIndex(index), draw(index)); // never ends early
        }
        // As text a finite float has as many digits as tell it from all others.
        match format!("{drawn:?}") == format!("{report:?}") {
            true => Conclusion::if_complete(format!("{} samples have their bits", report.0.len()), account),
            false => Conclusion::no_answer("the report is another one"),
        }
    }
}

fn draw(index: u64) -> Sample {
    let mut random = fastrand::Rng::with_seed(index);
    let finite = |bits: u64| Some(f64::from_bits(bits)).filter(|it| it.is_finite()).unwrap_or(-0.0);
    let single = f32::from_bits(random.u32(..0xff << 23)); // from 0 to the largest
    let subnormal = random.bool().then(|| -f64::from_bits(random.u64(..1 << 52)));
    let inner = BTreeMap::from([(random.u64(..), finite(random.u64(..)))]);
    let nested = BTreeMap::from([(random.char(..).to_string(), inner)]);
    let [double, natural] = [random.u64(..), random.u64(..)];
    (finite(double), single, natural, random.i128(..), random.char(..), subnormal, nested)
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Values>().main()
}
