//! Bare lapin in three processes: the reference.

use std::time::Instant;

use crate::{
    Bench, Outcome, bare,
    figure::{Better, Gauge},
    process::Process,
};

const PUBLISH: Gauge = Gauge::shown("bare lapin, publish only", "messages/s", Better::Higher);
const CONSUME: Gauge = Gauge::shown("bare lapin, consume only", "messages/s", Better::Higher);
const TWO_HOPS: Gauge = Gauge::shown("bare lapin, two hops", "messages/s", Better::Higher);

const CLIENTS_SPENT: Gauge = Gauge::shown("bare lapin, two hops: three clients", "CPU s/M", Better::Lower);
const BROKER_SPENT: Gauge = Gauge::shown("bare lapin, two hops: broker", "CPU s/M", Better::Lower);

/// The queue of the first hop, and of the second.
pub(crate) const FIRST: &str = "bare-1";
pub(crate) const SECOND: &str = "bare-2";

impl Bench {
    /// Publishes everything, and then consumes everything.
    pub(crate) async fn bare_halves(&mut self) -> Outcome<()> {
        self.make_queues().await?;
        let count = self.scale.messages;
        let (url, number) = (self.site.url().to_owned(), count.to_string());
        let published = run(count, [self.bare(&["publish", &url, FIRST, &number]).await?]).await?;
        self.report.add(&PUBLISH, published.rate);
        let consumed = run(count, [self.bare(&["consume", &url, FIRST, &number]).await?]).await?;
        self.report.add(&CONSUME, consumed.rate);
        Ok(())
    }

    /// Tasks out, results in: a publisher, a relay and a consumer. The processor time is everybody's, the broker's too.
    pub(crate) async fn bare_two_hops(&mut self) -> Outcome<Ran> {
        self.make_queues().await?;
        let count = self.scale.messages;
        let (url, number) = (self.site.url().to_owned(), count.to_string());
        let consumer = self.bare(&["consume", &url, SECOND, &number]).await?;
        let relay = self.bare(&["relay", &url, FIRST, SECOND, &number]).await?;
        let publisher = self.bare(&["publish", &url, FIRST, &number]).await?;
        let before = self.site.broker_seconds()?;
        let ran = run(count, [consumer, relay, publisher]).await?;
        let broker = self.site.broker_seconds()? - before;
        self.report.add(&TWO_HOPS, ran.rate);
        for (gauge, seconds) in [(&CLIENTS_SPENT, ran.spent), (&BROKER_SPENT, broker)] {
            self.report.add(gauge, seconds * 1e6 / count as f64);
        }
        Ok(Ran { spent: ran.spent + broker, ..ran })
    }

    /// Starts a process of the baseline, which is connected then and waits to begin.
    pub(crate) async fn bare(&self, arguments: &[&str]) -> Outcome<Process> {
        let mut process = Process::start(&format!("bare {}", arguments[0]), self.site.baseline(arguments))?;
        match process.line().await?.as_str() {
            "ready" => Ok(process),
            other => Err(format!("a process of the baseline said {other:?}").into()),
        }
    }

    /// Both queues, empty.
    pub(crate) async fn make_queues(&self) -> Outcome<()> {
        let connection = bare::connect(self.site.url()).await?;
        let channel = connection.create_channel().await?;
        for queue in [FIRST, SECOND] {
            bare::make_queue(&channel, queue).await?;
        }
        Ok(connection.close(200, "done".into()).await?)
    }
}

/// How fast it went, and what it took.
pub(crate) struct Ran {
    /// Messages per second, from the first until the end of the chain has counted them all.
    pub(crate) rate: f64,
    /// Processor time in seconds.
    pub(crate) spent: f64,
}

/// Lets these begin, those that take before those that give. Fails unless each has counted all messages.
async fn run<const N: usize>(count: u64, mut processes: [Process; N]) -> Outcome<Ran> {
    let start = Instant::now();
    for process in &mut processes {
        process.go().await?;
    }
    let (mut seconds, mut spent) = (None, 0.0);
    for mut process in processes {
        let counted: u64 = process.line().await?.parse()?;
        seconds = seconds.or(Some(start.elapsed().as_secs_f64()));
        spent += process.end_well().await?.seconds;
        if counted != count {
            return Err(format!("the baseline counted {counted} of {count} messages").into());
        }
    }
    Ok(Ran { rate: count as f64 / seconds.ok_or("nobody ran")?, spent })
}
