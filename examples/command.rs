//! A job whose tasks are commands: counts the words of files with `wc`.
//!
//! ```text
//! cargo run --release --example command -- run words README.md ARCHITECTURE.md
//! ```
//!
//! A command ends with its task: when the job is cancelled, when the time limit of a task has
//! passed, when the worker drains and its grace has ended, and when the worker dies.

use std::{path::PathBuf, process::ExitCode};

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// Count the words of files
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Words {
    /// The files, as every worker sees them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A shell command that runs instead of `wc -w`; the file is its `$1`
    #[arg(long)]
    script: Option<String>,
}

impl Job for Words {
    const KIND: &'static str = "words";
    type Task = PathBuf;
    type Output = u64;
    type Report = u64;

    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::of(self.files.len() as u64).unit("files"))
    }

    fn split(&self) -> impl Iterator<Item = Result<PathBuf, JobError>> + Send {
        self.files.iter().cloned().map(Ok)
    }

    fn process(&self, file: PathBuf, cx: &TaskContext) -> Result<u64, TaskError> {
        let command = match &self.script {
            None => Command::new("wc").arg("-w").arg("--").arg(file),
            Some(script) => Command::new("sh").args(["-c", script, "words"]).arg(file),
        };
        let output = cx.run(command)?.ok()?; // another exit code than 0 fails this try, with the end of stderr
        let count = output.stdout_text()?.split_whitespace().next().unwrap_or_default();
        Ok(count.parse()?)
    }

    fn collect(&self, words: &mut u64, _: TaskIndex, found: u64) -> ControlFlow<()> {
        *words += found;
        ControlFlow::Continue(())
    }
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Words>().main()
}
