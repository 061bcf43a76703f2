//! Tasks with work: how much of the cores we leave to it, against rayon, which does the same work and nothing else.
//!
//! Ours is measured as a user sees it: from the start of the process that submits, which connects first, to the answer.
//! Besides, processor time is compared, the broker's included: where all cores are busy it is the same ratio without the
//! connecting, and others on the machine disturb it less.

use std::time::Instant;

use gristmill_jobs::{Spin, Work};
use gristmill_shared::{Job as _, JobId, StopSignal, TaskContext, TaskIndex, wire::Finished};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::{
    Bench, Outcome,
    figure::{Better, Gauge},
    fleet::{Fleet, SLOTS, Spent, spin_answer},
    process::Process,
    usage::processor_seconds,
};

const LOCAL: Gauge =
    Gauge::judged("tasks of 10 µs, gristmill run ÷ rayon", "× time", Better::Lower, 0.10).demand(1.10);
const SHORT: Gauge =
    Gauge::judged("tasks of 10 µs, RabbitMQ ÷ rayon", "× time", Better::Lower, 0.15).demand(1.25);
const LONG: Gauge =
    Gauge::judged("tasks of 1 ms, RabbitMQ ÷ rayon", "× time", Better::Lower, 0.05).demand(1.05);
const LOCAL_SPENT: Gauge =
    Gauge::judged("tasks of 10 µs, gristmill run, CPU ÷ rayon", "× CPU", Better::Lower, 0.10);
const SHORT_SPENT: Gauge =
    Gauge::judged("tasks of 10 µs, RabbitMQ, CPU ÷ rayon", "× CPU", Better::Lower, 0.10);
const LONG_SPENT: Gauge = Gauge::judged("tasks of 1 ms, RabbitMQ, CPU ÷ rayon", "× CPU", Better::Lower, 0.05);
const SHORT_RATE: Gauge = Gauge::shown("tasks of 10 µs, RabbitMQ", "tasks/s", Better::Higher);
const LONG_RATE: Gauge = Gauge::shown("tasks of 1 ms, RabbitMQ", "tasks/s", Better::Higher);

/// What a job took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    /// From its submission to its answer.
    pub(super) seconds: f64,
    /// Of processors, by everybody who took part.
    spent: f64,
}

impl Bench {
    /// 10 µs: within one process, under rayon, and over the broker, so that rayon is next to both.
    pub(crate) async fn short_tasks(&mut self, local: bool, fleet: bool) -> Outcome<()> {
        let spin = self.spin_of(10);
        let in_one_process = if local { Some(self.run_local(&spin).await?) } else { None };
        let rayon = run_rayon(spin.clone()).await?;
        if let Some(ours) = in_one_process {
            self.report.add(&LOCAL, ours.seconds / rayon.seconds);
            self.report.add(&LOCAL_SPENT, ours.spent / rayon.spent);
        }
        if fleet {
            let ours = self.run_fleet(&spin).await?;
            self.report.add(&SHORT_RATE, spin.tasks as f64 / ours.seconds);
            self.report.add(&SHORT, ours.seconds / rayon.seconds);
            self.report.add(&SHORT_SPENT, ours.spent / rayon.spent);
        }
        Ok(())
    }

    /// 1 ms, over the broker.
    pub(crate) async fn long_tasks(&mut self) -> Outcome<()> {
        let spin = self.spin_of(1_000);
        let ours = self.run_fleet(&spin).await?;
        let rayon = run_rayon(spin.clone()).await?;
        self.report.add(&LONG_RATE, spin.tasks as f64 / ours.seconds);
        self.report.add(&LONG, ours.seconds / rayon.seconds);
        self.report.add(&LONG_SPENT, ours.spent / rayon.spent);
        Ok(())
    }

    /// Tasks of so many µs that keep all slots busy for as long as the scale says.
    fn spin_of(&self, micros: u32) -> Spin {
        let micros_in_all = self.scale.spin_seconds * 1_000_000 * u64::from(SLOTS.get());
        let tasks = micros_in_all / u64::from(micros);
        Spin { tasks, work: Work::micros(micros), ..Spin::default() }
    }

    /// `gristmill run`.
    async fn run_local(&self, spin: &Spin) -> Outcome<Took> {
        let mut command = self.site.own_program(&self.site.new_lane()?);
        let (spec, slots) = (serde_json::to_string(spin)?, SLOTS.to_string());
        command.args(["run", "spin", "--spec", &spec, "--slots", &slots, "--json"]);
        let start = Instant::now();
        let mut process = Process::start("gristmill run", command)?;
        let finished: Finished = process.json().await?;
        let seconds = start.elapsed().as_secs_f64();
        let spent = process.end_well().await?.seconds;
        match finished.conclusion.text == spin_answer(spin.tasks) {
            true => Ok(Took { seconds, spent }),
            false => Err(format!("wrong answer: {finished:?}").into()),
        }
    }

    /// Over the broker.
    pub(super) async fn run_fleet(&self, spin: &Spin) -> Outcome<Took> {
        let fleet = Fleet::start(&self.site).await?;
        let before = fleet.spent()?;
        let done = fleet.run(&["spin", "--spec", &serde_json::to_string(spin)?]).await?;
        let Spent { worker, sink, broker } = fleet.spent()?.since(before);
        fleet.end().await?;
        done.must_be_spin_of(spin.tasks)?;
        Ok(Took { seconds: done.seconds, spent: done.producer_seconds + worker + sink + broker })
    }
}

/// The same tasks under rayon, on as many threads as we have slots.
async fn run_rayon(spin: Spin) -> Outcome<Took> {
    tokio::task::spawn_blocking(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(SLOTS.get().into()).build()?;
        let context = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        let own = std::process::id(); // which does nothing else meanwhile
        let (start, before) = (Instant::now(), processor_seconds(own)?);
        let sum: u128 = pool.install(|| {
            let tasks = (0..spin.tasks).into_par_iter();
            let outputs = tasks.map(|index| spin.process(gristmill_jobs::SpinTask::Bare(index), &context));
            outputs.map(|output| u128::from(output.map_or(0, |output| output.index))).sum()
        });
        let (seconds, spent) = (start.elapsed().as_secs_f64(), processor_seconds(own)? - before);
        match format!("{} tasks, sum {sum}", spin.tasks) == spin_answer(spin.tasks) {
            true => Ok(Took { seconds, spent }),
            false => Err(format!("rayon's sum is {sum}").into()),
        }
    })
    .await?
}
