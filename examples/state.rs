//! State per worker and job: how many numbers below a limit have exactly two prime factors?
//!
//! ```text
//! cargo run --release --example state -- run semiprimes --limit 1000000
//! ```
//!
//! The table of smallest prime factors takes a while to make and is only read afterwards, so each
//! worker makes it once for the job, and all of its slots share it. A model that is loaded or a
//! pool of connections is no different.

use std::{ops::Range, process::ExitCode};

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};

/// Count the numbers that are the product of two primes
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Semiprimes {
    /// Look at the numbers below this one
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=100_000_000))]
    limit: u32,
}

/// The smallest prime factor of each number from 2 on, by the number.
struct Factors(Vec<u32>);

impl Factors {
    fn below(limit: u32) -> Self {
        let mut smallest: Vec<u32> = (0..limit).collect();
        for prime in (2..).take_while(|prime| prime * prime < limit) {
            for multiple in (prime * prime..limit).step_by(prime as usize) {
                let factor = &mut smallest[multiple as usize];
                *factor = prime.min(*factor);
            }
        }
        Self(smallest)
    }

    fn is_semiprime(&self, number: u32) -> bool {
        let factor = self.0[number as usize];
        let rest = number / factor;
        rest > 1 && self.0[rest as usize] == rest
    }
}

impl Job for Semiprimes {
    const KIND: &'static str = "semiprimes";
    type Task = Range<u32>;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<Range<u32>, JobError>> + Send {
        let limit = self.limit;
        (2..limit).step_by(10_000).map(move |low| Ok(low..limit.min(low + 10_000)))
    }

    fn prepare(&self) -> Result<State, TaskError> {
        eprintln!("making the table of factors below {}", self.limit);
        Ok(State::new(Factors::below(self.limit)))
    }

    fn process(&self, task: Range<u32>, cx: &TaskContext) -> Result<u64, TaskError> {
        let factors = cx.state::<Factors>()?;
        Ok(task.filter(|number| factors.is_semiprime(*number)).count() as u64)
    }

    fn collect(&self, sum: &mut u64, _: TaskIndex, count: u64) -> ControlFlow<()> {
        *sum += count;
        ControlFlow::Continue(())
    }
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Semiprimes>().main()
}
