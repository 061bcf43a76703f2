//! The program of `changed_old.rs` after a change: each task now gives its square, and three jobs
//! have another type. Of `versioned` alone the version was raised.

use std::process::ExitCode;

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// A job that adds up what its tasks give.
macro_rules! job {
    ($Job:ident, $kind:literal, $version:literal, $field:ident, $Task:ty, $Output:ty) => {
        #[derive(Serialize, Deserialize, clap::Args)]
        struct $Job {
            #[arg(long = "tasks")]
            $field: u64,
        }

        impl Job for $Job {
            const KIND: &'static str = $kind;
            const VERSION: u32 = $version;
            type Task = $Task;
            type Output = $Output;
            type Report = u64;

            fn split(&self) -> impl Iterator<Item = Result<$Task, JobError>> + Send {
                (0..self.$field).map(|number| Ok(number.into()))
            }
            fn process(&self, task: $Task, _: &TaskContext) -> Result<$Output, TaskError> {
                let number = u64::from(task);
                Ok((number * number).into())
            }
            fn collect(&self, sum: &mut u64, _: TaskIndex, output: $Output) -> ControlFlow<()> {
                *sum += u64::from(output);
                ControlFlow::Continue(())
            }
        }
    };
}

/// A number with a name.
#[derive(Serialize, Deserialize)]
struct Named {
    number: u64,
}

impl From<u64> for Named {
    fn from(number: u64) -> Self {
        Self { number }
    }
}

impl From<Named> for u64 {
    fn from(named: Named) -> Self {
        named.number
    }
}

job!(Versioned, "versioned", 2, tasks, u64, u64);
job!(Forgotten, "forgotten", 0, tasks, u64, u64);
job!(OtherSpec, "other-spec", 0, count, u64, u64);
job!(OtherTask, "other-task", 0, tasks, Named, u64);
job!(OtherOutput, "other-output", 0, tasks, u64, Named);

fn main() -> ExitCode {
    let app = gristmill::App::new().job::<Versioned>().job::<Forgotten>();
    app.job::<OtherSpec>().job::<OtherTask>().job::<OtherOutput>().main()
}
