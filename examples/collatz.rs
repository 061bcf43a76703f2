//! A job in a program of its own: which number below a limit has the longest Collatz chain?
//!
//! ```text
//! cargo run --release --example collatz -- run collatz --limit 1000000
//! ```
//!
//! The same program is a worker, a sink and a producer: `collatz worker`, `collatz sink`, `collatz
//! producer submit …`.

use std::{ops::Range, process::ExitCode};

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// Find the number with the longest Collatz chain
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Collatz {
    /// Look at the numbers below this one
    #[arg(long)]
    limit: u64,
}

impl Job for Collatz {
    const KIND: &'static str = "collatz";
    type Task = Range<u64>;
    type Output = (u64, u64);
    type Report = (u64, u64); // the length of the longest chain, and where it starts

    fn split(&self) -> impl Iterator<Item = Result<Range<u64>, JobError>> + Send {
        let limit = self.limit;
        (1..limit).step_by(10_000).map(move |low| Ok(low..limit.min(low + 10_000)))
    }

    fn process(&self, task: Range<u64>, cx: &TaskContext) -> Result<(u64, u64), TaskError> {
        cx.check()?;
        let chains = task.map(|start| (length(start), u64::MAX - start)); // the smaller start wins a draw
        Ok(chains.max().map(|(length, start)| (length, u64::MAX - start)).unwrap_or_default())
    }

    fn collect(&self, longest: &mut (u64, u64), _: TaskIndex, found: (u64, u64)) -> ControlFlow<()> {
        if found.0 > longest.0 || (found.0 == longest.0 && found.1 < longest.1) {
            *longest = found;
        }
        ControlFlow::Continue(())
    }

    fn conclude(&self, (length, start): &(u64, u64), account: &Account) -> Conclusion {
        Conclusion::if_complete(format!("{start} ({length} steps)"), account)
    }
}

fn length(start: u64) -> u64 {
    let next = |n: &u64| (*n != 1).then(|| if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 });
    std::iter::successors(Some(start), next).count() as u64 - 1
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Collatz>().main()
}
