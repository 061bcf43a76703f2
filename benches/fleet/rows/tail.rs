//! The long tail: few long tasks of random length, against the best possible schedule for them.
//!
//! That schedule is not only computed but run, by two threads that know all lengths and do nothing
//! else: other load on the machine then slows both.

use std::{thread, time::Instant};

use gristmill_jobs::{Spin, SpinTask, SpinWork};
use gristmill_shared::{Job as _, JobId, StopSignal, TaskContext, TaskIndex};

use crate::{
    Bench, BenchResult,
    figure::{Better, FigureSpec},
    fleet::SLOT_COUNT,
};

/// The time over the ideal schedule, less one task, which a scheduler that does not know the
/// lengths may start last.
const TAIL_RATIO: FigureSpec =
    FigureSpec::judged("tasks of 50 to 500 ms, less the longest ÷ ideal", "× time", Better::Lower, 0.05)
        .demand(1.05);
const PLAIN_RATIO: FigureSpec = FigureSpec::shown("tasks of 50 to 500 ms ÷ ideal", "× time", Better::Lower);

/// The bounds of a task's duration, in µs.
const TASK_MICROS: std::ops::RangeInclusive<u32> = 50_000..=500_000;

impl Bench {
    /// Measures as many tasks as the scale states, with other lengths each round.
    pub(crate) async fn measure_long_tail(&mut self, round: u32) -> BenchResult<()> {
        let work = SpinWork::between(TASK_MICROS);
        let spin = Spin { tasks: self.scale.tail_tasks, work, seed: round.into(), ..Spin::default() };
        let ours = self.run_fleet(&spin).await?.seconds;
        let lengths: Vec<_> =
            (0..spin.tasks).map(|index| (index, spin.task_micros(TaskIndex(index)))).collect();
        let all: u64 = lengths.iter().map(|(_, micros)| u64::from(*micros)).sum();
        let longest = lengths.iter().map(|(_, micros)| *micros).max().unwrap_or_default();
        let ideal = run_ideal(spin, lengths).await?;
        // At the speed of this run.
        let longest = f64::from(longest) / all as f64 * ideal * f64::from(SLOT_COUNT.get());
        self.report.add(&PLAIN_RATIO, ours / ideal);
        self.report.add(&TAIL_RATIO, (ours - longest) / ideal);
        Ok(())
    }
}

/// Runs the longest task first, each on the thread with the least load. With many tasks this is as
/// good as the best schedule. Returns the time in seconds.
async fn run_ideal(spin: Spin, mut lengths: Vec<(u64, u32)>) -> BenchResult<f64> {
    lengths.sort_by_key(|&(_, micros)| std::cmp::Reverse(micros));
    let mut shares = vec![(0_u64, Vec::new()); SLOT_COUNT.get().into()];
    for (index, micros) in lengths {
        if let Some(share) = shares.iter_mut().min_by_key(|(load, _)| *load) {
            share.0 += u64::from(micros);
            share.1.push(index);
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
            let threads: Vec<_> = shares.iter().map(|(_, tasks)| scope.spawn(move || run(tasks))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(1)).sum::<usize>()
        });
        let seconds = start.elapsed().as_secs_f64();
        if failed == 0 { Ok(seconds) } else { Err(format!("{failed} tasks failed").into()) }
    })
    .await?
}
