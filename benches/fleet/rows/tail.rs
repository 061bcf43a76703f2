//! The long tail: few long tasks of random length, against the best schedule there is for them.
//!
//! That schedule is not only computed but run, by two threads that know all lengths and do nothing else: so what else
//! happens on the machine slows both.

use std::{thread, time::Instant};

use gristmill_jobs::{Spin, SpinTask, Work};
use gristmill_shared::{Job as _, JobId, StopSignal, TaskContext, TaskIndex};

use crate::{
    Bench, Outcome,
    figure::{Better, Gauge},
    fleet::SLOTS,
};

/// What is over the ideal schedule, less one task, which whoever does not know the lengths may start last.
const TAIL: Gauge =
    Gauge::judged("tasks of 50 to 500 ms, less the longest ÷ ideal", "× time", Better::Lower, 0.05)
        .demand(1.05);
const PLAIN: Gauge = Gauge::shown("tasks of 50 to 500 ms ÷ ideal", "× time", Better::Lower);

/// The bounds of a task's length, in µs.
const MICROS: std::ops::RangeInclusive<u32> = 50_000..=500_000;

impl Bench {
    /// So many tasks as the scale says, with other lengths each round.
    pub(crate) async fn long_tail(&mut self, round: u32) -> Outcome<()> {
        let work = Work::between(MICROS);
        let spin = Spin { tasks: self.scale.tail_tasks, work, seed: round.into(), ..Spin::default() };
        let ours = self.run_fleet(&spin).await?.seconds;
        let lengths: Vec<_> =
            (0..spin.tasks).map(|index| (index, spin.micros_of(TaskIndex(index)))).collect();
        let all: u64 = lengths.iter().map(|(_, micros)| u64::from(*micros)).sum();
        let longest = lengths.iter().map(|(_, micros)| *micros).max().unwrap_or_default();
        let ideal = run_ideal(spin, lengths).await?;
        let longest = f64::from(longest) / all as f64 * ideal * f64::from(SLOTS.get()); // at the speed there was
        self.report.add(&PLAIN, ours / ideal);
        self.report.add(&TAIL, (ours - longest) / ideal);
        Ok(())
    }
}

/// The longest task first, each to the thread that has least to do: with many tasks as good as the best there is. In
/// seconds.
async fn run_ideal(spin: Spin, mut lengths: Vec<(u64, u32)>) -> Outcome<f64> {
    lengths.sort_by_key(|&(_, micros)| std::cmp::Reverse(micros));
    let mut hands = vec![(0_u64, Vec::new()); SLOTS.get().into()];
    for (index, micros) in lengths {
        if let Some(hand) = hands.iter_mut().min_by_key(|(load, _)| *load) {
            hand.0 += u64::from(micros);
            hand.1.push(index);
        }
    }
    tokio::task::spawn_blocking(move || {
        let context = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        let start = Instant::now();
        let failed = thread::scope(|scope| {
            let run = |tasks: &Vec<u64>| {
                let failed = |index: &&u64| spin.process(SpinTask::Bare(**index), &context).is_err();
                tasks.iter().filter(failed).count()
            };
            let threads: Vec<_> = hands.iter().map(|(_, tasks)| scope.spawn(move || run(tasks))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(1)).sum::<usize>()
        });
        let seconds = start.elapsed().as_secs_f64();
        if failed == 0 { Ok(seconds) } else { Err(format!("{failed} tasks failed").into()) }
    })
    .await?
}
