//! A job that changes while a fleet runs: the version says which code may work on it.
//!
//! ```text
//! cargo run --release --example changing -- run count --text "to be or not to be"
//! ```
//!
//! The first release counted letters, with `VERSION` 0. This one counts words: an output means
//! something else, so `VERSION` is 1 now. Workers of the first release that still run leave this
//! job's tasks to others and say so. If one of their outputs comes nevertheless, the sink refuses
//! it and the task runs again.

use std::process::ExitCode;

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// Count the words of a text
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Words {
    /// The text
    #[arg(long)]
    text: String,
}

impl Job for Words {
    const KIND: &'static str = "count";
    const VERSION: u32 = 1; // raised with each change of what a task, an output or the report means
    type Task = String;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<String, JobError>> + Send {
        self.text.lines().map(|line| Ok(line.to_owned()))
    }

    fn process(&self, line: String, _: &TaskContext) -> Result<u64, TaskError> {
        Ok(line.split_whitespace().count() as u64) // was: line.chars().filter(|c| c.is_alphabetic()).count()
    }

    fn collect(&self, words: &mut u64, _: TaskIndex, found: u64) -> ControlFlow<()> {
        *words += found;
        ControlFlow::Continue(())
    }
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Words>().main()
}
