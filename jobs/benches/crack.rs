//! The speed of `crack` on one thread, beside a bare loop over the same crate's compression
//! function.
//!
//! The two alternate, a millisecond or less each, so that other load on the machine disturbs both
//! alike. The ratio is the median of the turns' ratios. The best rate is that of the least
//! disturbed turn.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use gristmill_jobs::Crack;
use gristmill_shared::{Job, JobId, StopSignal, TaskContext, TaskIndex};

/// The number of turns of each of the two.
const TURN_COUNT: usize = 501;
/// The number of tasks of a turn, of the default size.
const TURN_TASKS: u64 = 2;
/// The first task of each turn, among the words of six letters.
const FIRST_TASK: TaskIndex = TaskIndex(2000);

fn main() {
    println!("{:<8}{:>22}{:>22}{:>14}", "", "crack", "bare compression", "crack ÷ bare");
    compare("sha1", 40, [1; 5], sha1::block_api::compress);
    compare("sha256", 64, [1; 8], sha2::block_api::compress256);
    compare("md5", 32, [1; 4], md5::block_api::compress);
}

fn compare<const N: usize>(
    name: &str,
    digits: usize,
    start: [u32; N],
    compress: impl Fn(&mut [u32; N], &[[u8; 64]]),
) {
    let spec = format!(r#"{{"hash":"{}","max_length":6}}"#, "0".repeat(digits));
    let job: Crack = serde_json::from_str(&spec).expect("a spec");
    let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());

    let crack = || {
        for task in job.split_from(FIRST_TASK).take(TURN_TASKS as usize) {
            assert_eq!(
                job.process(task.expect("a task"), &cx).ok(),
                Some(None),
                "zeros are no word's digest"
            );
        }
    };
    let bare = || {
        let (start, block) = black_box((start, [[7; 64]]));
        let mut found = 0;
        for _ in 0..TURN_TASKS * job.chunk {
            let mut state = start;
            compress(&mut state, &block);
            found += u64::from(state == start);
        }
        assert_eq!(found, 0);
    };

    let turns: Vec<_> = (0..TURN_COUNT).map(|_| (time(crack), time(bare))).collect();
    let rates = |times: Vec<Duration>| {
        let candidates = (TURN_TASKS * job.chunk) as f64;
        let rates = sorted(times.into_iter().map(|time| candidates / time.as_secs_f64() / 1e6));
        format!("{:.1} M/s, best {:.1}", rates[TURN_COUNT / 2], rates[TURN_COUNT - 1])
    };
    let ratios = sorted(turns.iter().map(|(crack, bare)| bare.as_secs_f64() / crack.as_secs_f64()));
    let (crack, bare): (Vec<_>, Vec<_>) = turns.into_iter().unzip();
    println!("{name:<8}{:>22}{:>22}{:>14.2}", rates(crack), rates(bare), ratios[TURN_COUNT / 2]);
}

fn time(run: impl Fn()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}
