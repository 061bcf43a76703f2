//! Tasks without work: the cost of a message, and the number of tasks in one.

use crate::{
    Bench, BenchResult,
    figure::{Better, FigureSpec},
    fleet::{BenchFleet, RoleSeconds},
};

/// The figures of a job whose tasks have no work.
struct WorkGauges {
    rate: FigureSpec,
    /// The rate divided by that of bare lapin's two hops in the same round.
    ratio: FigureSpec,
    /// The processor time of a task divided by that of a message of the baseline.
    cpu_ratio: FigureSpec,
    /// The processor seconds for a million tasks: of the producer, the worker, the sink, the
    /// broker.
    cpu_seconds: [FigureSpec; 4],
}

const SINGLE_GAUGES: WorkGauges = WorkGauges {
    rate: FigureSpec::shown("a task a message", "tasks/s", Better::Higher),
    ratio: FigureSpec::judged("a task a message ÷ bare two hops", "×", Better::Higher, 0.15).demand(0.85),
    cpu_ratio: FigureSpec::judged("a task a message, CPU ÷ bare two hops", "× CPU", Better::Lower, 0.15),
    cpu_seconds: [
        FigureSpec::shown("a task a message: producer", "CPU s/M", Better::Lower),
        FigureSpec::shown("a task a message: worker", "CPU s/M", Better::Lower),
        FigureSpec::shown("a task a message: sink", "CPU s/M", Better::Lower),
        FigureSpec::shown("a task a message: broker", "CPU s/M", Better::Lower),
    ],
};

const TINY_GAUGES: WorkGauges = WorkGauges {
    rate: FigureSpec::shown("tasks of 0 µs", "tasks/s", Better::Higher),
    ratio: FigureSpec::judged("tasks of 0 µs ÷ bare two hops", "×", Better::Higher, 0.25).demand(100.0),
    cpu_ratio: FigureSpec::judged("tasks of 0 µs, CPU ÷ bare two hops", "× CPU", Better::Lower, 0.50),
    cpu_seconds: [
        FigureSpec::shown("tasks of 0 µs: producer", "CPU s/M", Better::Lower),
        FigureSpec::shown("tasks of 0 µs: worker", "CPU s/M", Better::Lower),
        FigureSpec::shown("tasks of 0 µs: sink", "CPU s/M", Better::Lower),
        FigureSpec::shown("tasks of 0 µs: broker", "CPU s/M", Better::Lower),
    ],
};

impl Bench {
    /// Measures one task in each message, right after the baseline that it is divided by.
    pub(crate) async fn measure_single_tasks(&mut self) -> BenchResult<()> {
        self.measure_without_work(&SINGLE_GAUGES, self.scale.messages, &["--batch", "1"]).await
    }

    /// Measures tasks in batches of adaptive size, right after the baseline.
    pub(crate) async fn measure_tiny_tasks(&mut self) -> BenchResult<()> {
        self.measure_without_work(&TINY_GAUGES, self.scale.tiny_tasks, &[]).await
    }

    async fn measure_without_work(
        &mut self,
        gauges: &WorkGauges,
        tasks: u64,
        flags: &[&str],
    ) -> BenchResult<()> {
        let baseline = self.measure_bare_two_hops().await?;
        let fleet = BenchFleet::start(&self.env).await?;
        let before = fleet.role_seconds()?;
        let tasks_flag = tasks.to_string();
        let done = fleet.run(&[&["spin", "--micros", "0", "--tasks", &tasks_flag], flags].concat()).await?;
        let after = fleet.role_seconds()?;
        fleet.shut_down().await?;
        done.check_spin(tasks)?;

        let rate = tasks as f64 / done.seconds;
        self.report.add(&gauges.rate, rate);
        self.report.add(&gauges.ratio, rate / baseline.rate);
        let RoleSeconds { worker, sink, broker } = after.minus(before);
        let cpu_seconds = done.producer_seconds + worker + sink + broker;
        let bare_cpu_seconds = baseline.cpu_seconds / self.scale.messages as f64;
        self.report.add(&gauges.cpu_ratio, cpu_seconds / tasks as f64 / bare_cpu_seconds);
        for (gauge, seconds) in gauges.cpu_seconds.iter().zip([done.producer_seconds, worker, sink, broker]) {
            self.report.add(gauge, seconds * 1e6 / tasks as f64);
        }
        Ok(())
    }
}
