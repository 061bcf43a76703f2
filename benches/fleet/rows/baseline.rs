//! The baseline: bare lapin in three processes.

use std::time::Instant;

use crate::{
    Bench, BenchResult, bare,
    figure::{Better, FigureSpec},
    process::BenchProcess,
};

const PUBLISH_RATE: FigureSpec = FigureSpec::shown("bare lapin, publish only", "messages/s", Better::Higher);
const CONSUME_RATE: FigureSpec = FigureSpec::shown("bare lapin, consume only", "messages/s", Better::Higher);
const TWO_HOPS_RATE: FigureSpec = FigureSpec::shown("bare lapin, two hops", "messages/s", Better::Higher);

const CLIENTS_CPU: FigureSpec =
    FigureSpec::shown("bare lapin, two hops: three clients", "CPU s/M", Better::Lower);
const BROKER_CPU: FigureSpec = FigureSpec::shown("bare lapin, two hops: broker", "CPU s/M", Better::Lower);

/// The queues of the first and the second hop.
pub(crate) const FIRST_QUEUE: &str = "bare-1";
pub(crate) const SECOND_QUEUE: &str = "bare-2";

impl Bench {
    /// Publishes all messages, and then consumes all of them.
    pub(crate) async fn measure_bare_halves(&mut self) -> BenchResult<()> {
        self.create_queues().await?;
        let count = self.scale.messages;
        let (url, number) = (self.env.url().to_owned(), count.to_string());
        let published =
            run(count, [self.start_bare(&["publish", &url, FIRST_QUEUE, &number]).await?]).await?;
        self.report.add(&PUBLISH_RATE, published.rate);
        let consumed = run(count, [self.start_bare(&["consume", &url, FIRST_QUEUE, &number]).await?]).await?;
        self.report.add(&CONSUME_RATE, consumed.rate);
        Ok(())
    }

    /// Runs a publisher, a relay and a consumer: tasks out, results in. The processor time is that
    /// of all three and of the broker.
    pub(crate) async fn measure_bare_two_hops(&mut self) -> BenchResult<ChainCost> {
        self.create_queues().await?;
        let count = self.scale.messages;
        let (url, number) = (self.env.url().to_owned(), count.to_string());
        let consumer = self.start_bare(&["consume", &url, SECOND_QUEUE, &number]).await?;
        let relay = self.start_bare(&["relay", &url, FIRST_QUEUE, SECOND_QUEUE, &number]).await?;
        let publisher = self.start_bare(&["publish", &url, FIRST_QUEUE, &number]).await?;
        let before = self.env.broker_seconds()?;
        let ran = run(count, [consumer, relay, publisher]).await?;
        let broker = self.env.broker_seconds()? - before;
        self.report.add(&TWO_HOPS_RATE, ran.rate);
        for (gauge, seconds) in [(&CLIENTS_CPU, ran.cpu_seconds), (&BROKER_CPU, broker)] {
            self.report.add(gauge, seconds * 1e6 / count as f64);
        }
        Ok(ChainCost { cpu_seconds: ran.cpu_seconds + broker, ..ran })
    }

    /// Starts a process of the baseline, which connects and then waits to begin.
    pub(crate) async fn start_bare(&self, arguments: &[&str]) -> BenchResult<BenchProcess> {
        let mut process =
            BenchProcess::start(&format!("bare {}", arguments[0]), self.env.baseline(arguments))?;
        match process.next_line().await?.as_str() {
            "ready" => Ok(process),
            other => Err(format!("a process of the baseline printed {other:?}").into()),
        }
    }

    /// Creates both queues, empty.
    pub(crate) async fn create_queues(&self) -> BenchResult<()> {
        let connection = bare::connect(self.env.url()).await?;
        let channel = connection.create_channel().await?;
        for queue in [FIRST_QUEUE, SECOND_QUEUE] {
            bare::create_queue(&channel, queue).await?;
        }
        Ok(connection.close(200, "done".into()).await?)
    }
}

/// The rate and the cost of a chain of processes.
pub(crate) struct ChainCost {
    /// Messages per second, from the start until the end of the chain has counted all of them.
    pub(crate) rate: f64,
    /// Processor time in seconds.
    pub(crate) cpu_seconds: f64,
}

/// Starts the processes, consumers first. Fails unless each has counted all messages.
async fn run<const N: usize>(count: u64, mut processes: [BenchProcess; N]) -> BenchResult<ChainCost> {
    let start = Instant::now();
    for process in &mut processes {
        process.send_go().await?;
    }
    let (mut seconds, mut cpu_seconds) = (None, 0.0);
    for mut process in processes {
        let counted: u64 = process.next_line().await?.parse()?;
        seconds = seconds.or(Some(start.elapsed().as_secs_f64()));
        cpu_seconds += process.wait_success().await?.seconds;
        if counted != count {
            return Err(format!("the baseline counted {counted} of {count} messages").into());
        }
    }
    Ok(ChainCost { rate: count as f64 / seconds.ok_or("no process ran")?, cpu_seconds })
}
