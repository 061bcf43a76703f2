//! The kernel EP of the NAS Parallel Benchmarks: pairs of Gaussian deviates, their sums, and where
//! they lie. The tasks' sums are added exactly: the report has the same bits in any order of the
//! tasks.
//!
//! ```text
//! cargo run --release --example ep -- run ep --class S
//! ```

use std::process::ExitCode;

use gristmill::{fold::ExactSum, prelude::*};
use serde::{Deserialize, Serialize};

const PAIRS_PER_TASK: u32 = 1 << 16;
const START_SEED: u64 = 271_828_183;
const LCG_MULTIPLIER: u64 = 5_u64.pow(13); // modulo 2^46

#[derive(Debug, Clone, Copy, Serialize, Deserialize, clap::ValueEnum)]
#[value(rename_all = "verbatim")]
enum Class {
    S = 24,
    W = 25,
    A = 28,
}

/// Count pairs of Gaussian deviates (NAS EP)
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Ep {
    /// The size: 2^24, 2^25 or 2^28 pairs
    #[arg(long)]
    class: Class,
}

impl Job for Ep {
    const KIND: &'static str = "ep";
    type Task = u32;
    type Output = ([f64; 2], [u64; 10]);
    type Report = ([ExactSum; 2], [u64; 10]);

    fn split(&self) -> impl Iterator<Item = Result<u32, JobError>> + Send {
        (0..(1 << self.class as u32) / PAIRS_PER_TASK).map(Ok)
    }

    fn process(&self, task: u32, cx: &TaskContext) -> Result<Self::Output, TaskError> {
        cx.check()?;
        let mut x = START_SEED.wrapping_mul(LCG_MULTIPLIER.wrapping_pow(task * PAIRS_PER_TASK * 2));
        let mut next = || {
            x = x.wrapping_mul(LCG_MULTIPLIER) % (1 << 46);
            x as f64 / (1_u64 << 45) as f64 - 1.0 // evenly from -1 to 1
        };
        let (mut sums, mut counts) = ([0.0, 0.0], [0; 10]);
        for [a, b] in (0..PAIRS_PER_TASK).map(|_| [next(), next()]) {
            let square = a * a + b * b;
            if square <= 1.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                let pair = [a * factor, b * factor];
                counts[pair[0].abs().max(pair[1].abs()) as usize] += 1;
                sums = [sums[0] + pair[0], sums[1] + pair[1]];
            }
        }
        Ok((sums, counts))
    }

    fn collect(&self, all: &mut Self::Report, _: TaskIndex, (sums, counts): Self::Output) -> ControlFlow<()> {
        all.0.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
        all.1.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
        ControlFlow::Continue(())
    }

    fn conclude(&self, (sums, counts): &Self::Report, account: &Account) -> Conclusion {
        let [sx, sy] = sums.each_ref().map(ExactSum::value);
        let bits = (sx.to_bits(), sy.to_bits());
        let text = format!("sx {sx:.15e} sy {sy:.15e} bits {bits:x?} counts {counts:?}");
        Conclusion::if_complete(text, account)
    }
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Ep>().main()
}
