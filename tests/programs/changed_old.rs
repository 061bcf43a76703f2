//! A program before its jobs were changed; `changed_new.rs` is the program after that.

use std::process::ExitCode;

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// A job that adds up what its tasks give.
macro_rules! job {
    ($Job:ident, $kind:literal, $version:literal) => {
        #[derive(Serialize, Deserialize, clap::Args)]
        struct $Job {
            #[arg(long)]
            tasks: u64,
        }

        impl Job for $Job {
            const KIND: &'static str = $kind;
            const VERSION: u32 = $version;
            type Task = u64;
            type Output = u64;
            type Report = u64;

            fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
                (0..self.tasks).map(Ok)
            }
            fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
                Ok(task)
            }
            fn collect(&self, sum: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
                *sum += output;
                ControlFlow::Continue(())
            }
        }
    };
}

job!(Versioned, "versioned", 1);
job!(Forgotten, "forgotten", 0);
job!(OtherSpec, "other-spec", 0);
job!(OtherTask, "other-task", 0);
job!(OtherOutput, "other-output", 0);

fn main() -> ExitCode {
    let app = gristmill::App::new().job::<Versioned>().job::<Forgotten>();
    app.job::<OtherSpec>().job::<OtherTask>().job::<OtherOutput>().main()
}
