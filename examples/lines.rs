//! A job over a file that only the producer's machine has: counts the words in its lines.
//!
//! ```text
//! cargo run --release --example lines -- run lines README.md
//! ```
//!
//! The path does not travel. `producer resume` finds it in the producer's cursor.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::ExitCode,
};

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// Count the words in the lines of a local file
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Lines {
    /// The file, which workers need not see
    #[serde(skip)]
    file: PathBuf,
    /// Count the words of at least this many letters
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_letters: usize,
}

impl Lines {
    fn open(&self) -> Result<BufReader<File>, JobError> {
        let opened = File::open(&self.file).map(BufReader::new);
        opened.map_err(|error| JobError::new(format_args!("cannot read {}: {error}", self.file.display())))
    }
}

impl Job for Lines {
    const KIND: &'static str = "lines";
    type Task = String;
    type Output = u64;
    type Report = u64;

    fn plan(&self) -> Result<Plan, JobError> {
        self.open()?; // refuses a wrong path before anything is sent
        Ok(Plan::unknown().unit("lines"))
    }

    fn policy(&self, defaults: Policy) -> Policy {
        Policy { max_attempts: 1, ..defaults } // a line that fails once fails again
    }

    fn local(&self) -> Result<LocalInput, JobError> {
        LocalInput::new(&std::path::absolute(&self.file)?)
    }

    fn with_local(&mut self, local: &LocalInput) -> Result<(), JobError> {
        self.file = local.get()?;
        Ok(())
    }

    fn split(&self) -> impl Iterator<Item = Result<String, JobError>> + Send {
        let (lines, error) = match self.open() {
            Ok(file) => (Some(file.lines()), None),
            Err(error) => (None, Some(Err(error))),
        };
        error.into_iter().chain(lines.into_iter().flatten().map(|line| Ok(line?)))
    }

    fn process(&self, line: String, _: &TaskContext) -> Result<u64, TaskError> {
        let letters = |word: &&str| word.chars().count() >= self.min_letters;
        Ok(line.split_whitespace().filter(letters).count() as u64)
    }

    fn collect(&self, words: &mut u64, _: TaskIndex, found: u64) -> ControlFlow<()> {
        *words += found;
        ControlFlow::Continue(())
    }
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Lines>().main()
}
