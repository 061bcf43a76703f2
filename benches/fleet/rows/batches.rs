//! Tasks of no work at all: what a message costs us, and how many tasks we get into one.

use crate::{
    Bench, Outcome,
    figure::{Better, Gauge},
    fleet::{Fleet, Spent},
};

/// What is measured of a job of tasks without work.
struct Gauges {
    rate: Gauge,
    /// Against bare lapin's two hops in the same round.
    ratio: Gauge,
    /// The same of processor time for a message of the baseline and for a task.
    spent_ratio: Gauge,
    /// Processor seconds for a million tasks: of the producer, the worker, the sink, the broker.
    spent: [Gauge; 4],
}

const SINGLE: Gauges = Gauges {
    rate: Gauge::shown("a task a message", "tasks/s", Better::Higher),
    ratio: Gauge::judged("a task a message ÷ bare two hops", "×", Better::Higher, 0.15).demand(0.85),
    spent_ratio: Gauge::judged("a task a message, CPU ÷ bare two hops", "× CPU", Better::Lower, 0.15),
    spent: [
        Gauge::shown("a task a message: producer", "CPU s/M", Better::Lower),
        Gauge::shown("a task a message: worker", "CPU s/M", Better::Lower),
        Gauge::shown("a task a message: sink", "CPU s/M", Better::Lower),
        Gauge::shown("a task a message: broker", "CPU s/M", Better::Lower),
    ],
};

const TINY: Gauges = Gauges {
    rate: Gauge::shown("tasks of 0 µs", "tasks/s", Better::Higher),
    ratio: Gauge::judged("tasks of 0 µs ÷ bare two hops", "×", Better::Higher, 0.25).demand(100.0),
    spent_ratio: Gauge::judged("tasks of 0 µs, CPU ÷ bare two hops", "× CPU", Better::Lower, 0.50),
    spent: [
        Gauge::shown("tasks of 0 µs: producer", "CPU s/M", Better::Lower),
        Gauge::shown("tasks of 0 µs: worker", "CPU s/M", Better::Lower),
        Gauge::shown("tasks of 0 µs: sink", "CPU s/M", Better::Lower),
        Gauge::shown("tasks of 0 µs: broker", "CPU s/M", Better::Lower),
    ],
};

impl Bench {
    /// One task in each message, right after the baseline that it is divided by.
    pub(crate) async fn single_tasks(&mut self) -> Outcome<()> {
        self.without_work(&SINGLE, self.scale.messages, &["--batch", "1"]).await
    }

    /// As many tasks in a message as we see fit, right after the baseline.
    pub(crate) async fn tiny_tasks(&mut self) -> Outcome<()> {
        self.without_work(&TINY, self.scale.tiny_tasks, &[]).await
    }

    async fn without_work(&mut self, gauges: &Gauges, tasks: u64, flags: &[&str]) -> Outcome<()> {
        let baseline = self.bare_two_hops().await?;
        let fleet = Fleet::start(&self.site).await?;
        let before = fleet.spent()?;
        let tasks_flag = tasks.to_string();
        let done = fleet.run(&[&["spin", "--micros", "0", "--tasks", &tasks_flag], flags].concat()).await?;
        let after = fleet.spent()?;
        fleet.end().await?;
        done.must_be_spin_of(tasks)?;

        let rate = tasks as f64 / done.seconds;
        self.report.add(&gauges.rate, rate);
        self.report.add(&gauges.ratio, rate / baseline.rate);
        let Spent { worker, sink, broker } = after.since(before);
        let spent = done.producer_seconds + worker + sink + broker;
        let spent_bare = baseline.spent / self.scale.messages as f64;
        self.report.add(&gauges.spent_ratio, spent / tasks as f64 / spent_bare);
        for (gauge, seconds) in gauges.spent.iter().zip([done.producer_seconds, worker, sink, broker]) {
            self.report.add(gauge, seconds * 1e6 / tasks as f64);
        }
        Ok(())
    }
}
