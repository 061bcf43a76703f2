//! Tasks with work: the share of the cores that Gristmill leaves to them, against rayon, which does
//! the same work and nothing else.
//!
//! Gristmill is measured as a user sees it: from the start of the process that submits, which
//! connects first, to the answer. Processor time is compared too, with that of the broker. Where
//! all cores are busy it is the same ratio without the time to connect, and other programs on the
//! machine disturb it less.

use std::time::Instant;

use gristmill_jobs::{Spin, SpinWork};
use gristmill_shared::{Job as _, JobId, StopSignal, TaskContext, TaskIndex, wire::Finished};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::{
    Bench, BenchResult,
    figure::{Better, FigureSpec},
    fleet::{BenchFleet, RoleSeconds, SLOT_COUNT, expected_spin_answer},
    process::BenchProcess,
    usage::processor_seconds,
};

const LOCAL_TIME: FigureSpec =
    FigureSpec::judged("tasks of 10 µs, gristmill run ÷ rayon", "× time", Better::Lower, 0.10).demand(1.10);
const SHORT_TIME: FigureSpec =
    FigureSpec::judged("tasks of 10 µs, RabbitMQ ÷ rayon", "× time", Better::Lower, 0.15).demand(1.25);
const LONG_TIME: FigureSpec =
    FigureSpec::judged("tasks of 1 ms, RabbitMQ ÷ rayon", "× time", Better::Lower, 0.05).demand(1.05);
const LOCAL_CPU: FigureSpec =
    FigureSpec::judged("tasks of 10 µs, gristmill run, CPU ÷ rayon", "× CPU", Better::Lower, 0.10);
const SHORT_CPU: FigureSpec =
    FigureSpec::judged("tasks of 10 µs, RabbitMQ, CPU ÷ rayon", "× CPU", Better::Lower, 0.10);
const LONG_CPU: FigureSpec =
    FigureSpec::judged("tasks of 1 ms, RabbitMQ, CPU ÷ rayon", "× CPU", Better::Lower, 0.05);
const SHORT_RATE: FigureSpec = FigureSpec::shown("tasks of 10 µs, RabbitMQ", "tasks/s", Better::Higher);
const LONG_RATE: FigureSpec = FigureSpec::shown("tasks of 1 ms, RabbitMQ", "tasks/s", Better::Higher);

/// The cost of a job.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobCost {
    /// The time from its submission to its answer.
    pub(super) seconds: f64,
    /// The processor time of all processes that took part.
    cpu_seconds: f64,
}

impl Bench {
    /// Measures tasks of 10 µs: within one process, under rayon, and over the broker. Rayon is next
    /// to both.
    pub(crate) async fn measure_short_tasks(&mut self, local: bool, fleet: bool) -> BenchResult<()> {
        let spin = self.spin_of(10);
        let in_one_process = if local { Some(self.run_local(&spin).await?) } else { None };
        let rayon = run_rayon(spin.clone()).await?;
        if let Some(ours) = in_one_process {
            self.report.add(&LOCAL_TIME, ours.seconds / rayon.seconds);
            self.report.add(&LOCAL_CPU, ours.cpu_seconds / rayon.cpu_seconds);
        }
        if fleet {
            let ours = self.run_fleet(&spin).await?;
            self.report.add(&SHORT_RATE, spin.tasks as f64 / ours.seconds);
            self.report.add(&SHORT_TIME, ours.seconds / rayon.seconds);
            self.report.add(&SHORT_CPU, ours.cpu_seconds / rayon.cpu_seconds);
        }
        Ok(())
    }

    /// Measures tasks of 1 ms over the broker.
    pub(crate) async fn measure_long_tasks(&mut self) -> BenchResult<()> {
        let spin = self.spin_of(1_000);
        let ours = self.run_fleet(&spin).await?;
        let rayon = run_rayon(spin.clone()).await?;
        self.report.add(&LONG_RATE, spin.tasks as f64 / ours.seconds);
        self.report.add(&LONG_TIME, ours.seconds / rayon.seconds);
        self.report.add(&LONG_CPU, ours.cpu_seconds / rayon.cpu_seconds);
        Ok(())
    }

    /// Returns a spin of tasks of `micros` µs that keep all slots busy for as long as the scale
    /// states.
    fn spin_of(&self, micros: u32) -> Spin {
        let micros_in_all = self.scale.spin_seconds * 1_000_000 * u64::from(SLOT_COUNT.get());
        let tasks = micros_in_all / u64::from(micros);
        Spin { tasks, work: SpinWork::micros(micros), ..Spin::default() }
    }

    /// Runs `gristmill run`.
    async fn run_local(&self, spin: &Spin) -> BenchResult<JobCost> {
        let mut command = self.env.own_program(&self.env.new_lane()?);
        let (spec, slots) = (serde_json::to_string(spin)?, SLOT_COUNT.to_string());
        command.args(["run", "spin", "--spec", &spec, "--slots", &slots, "--json"]);
        let start = Instant::now();
        let mut process = BenchProcess::start("gristmill run", command)?;
        let finished: Finished = process.read_json().await?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu_seconds = process.wait_success().await?.seconds;
        match finished.conclusion.text == expected_spin_answer(spin.tasks) {
            true => Ok(JobCost { seconds, cpu_seconds }),
            false => Err(format!("wrong answer: {finished:?}").into()),
        }
    }

    /// Runs a job over the broker.
    pub(super) async fn run_fleet(&self, spin: &Spin) -> BenchResult<JobCost> {
        let fleet = BenchFleet::start(&self.env).await?;
        let before = fleet.role_seconds()?;
        let done = fleet.run(&["spin", "--spec", &serde_json::to_string(spin)?]).await?;
        let RoleSeconds { worker, sink, broker } = fleet.role_seconds()?.minus(before);
        fleet.shut_down().await?;
        done.check_spin(spin.tasks)?;
        Ok(JobCost { seconds: done.seconds, cpu_seconds: done.producer_seconds + worker + sink + broker })
    }
}

/// Runs the same tasks under rayon, on as many threads as Gristmill has slots.
async fn run_rayon(spin: Spin) -> BenchResult<JobCost> {
    tokio::task::spawn_blocking(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(SLOT_COUNT.get().into()).build()?;
        let context = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        let own = std::process::id(); // this process does nothing else meanwhile
        let (start, before) = (Instant::now(), processor_seconds(own)?);
        let sum: u128 = pool.install(|| {
            let tasks = (0..spin.tasks).into_par_iter();
            let outputs = tasks.map(|index| spin.process(gristmill_jobs::SpinTask::Bare(index), &context));
            outputs.map(|output| u128::from(output.map_or(0, |output| output.index))).sum()
        });
        let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), processor_seconds(own)? - before);
        match format!("{} tasks, sum {sum}", spin.tasks) == expected_spin_answer(spin.tasks) {
            true => Ok(JobCost { seconds, cpu_seconds }),
            false => Err(format!("rayon's sum is {sum}").into()),
        }
    })
    .await?
}
