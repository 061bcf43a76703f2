//! What everybody holds in memory, and what waits on the broker, after many tasks.

use std::time::{Duration, Instant};

use gristmill_shared::QueueRole;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use tokio::time::interval;

use crate::{
    Bench, Outcome, bare,
    figure::{Better, Gauge},
    fleet::Fleet,
    process::Process,
    usage::{Memory, memory},
};

/// What a run of one size tells, of producer, worker and sink.
struct Gauges {
    at_end: [Gauge; 3],
    peak: [Gauge; 3],
}

const fn of_role(name: &'static str) -> Gauge {
    Gauge::judged(name, "MB", Better::Lower, 0.20)
}

const MILLION: Gauges = Gauges {
    at_end: [
        of_role("memory after 1 M tasks: producer").demand(40.0),
        of_role("memory after 1 M tasks: worker").demand(60.0),
        of_role("memory after 1 M tasks: sink").demand(80.0),
    ],
    peak: [
        Gauge::shown("peak memory, 1 M tasks: producer", "MB", Better::Lower),
        Gauge::shown("peak memory, 1 M tasks: worker", "MB", Better::Lower),
        Gauge::shown("peak memory, 1 M tasks: sink", "MB", Better::Lower),
    ],
};

const TEN_MILLION: Gauges = Gauges {
    at_end: [
        of_role("memory after 10 M tasks: producer").demand(40.0),
        of_role("memory after 10 M tasks: worker").demand(60.0),
        of_role("memory after 10 M tasks: sink").demand(80.0),
    ],
    peak: [
        Gauge::shown("peak memory, 10 M tasks: producer", "MB", Better::Lower),
        Gauge::shown("peak memory, 10 M tasks: worker", "MB", Better::Lower),
        Gauge::shown("peak memory, 10 M tasks: sink", "MB", Better::Lower),
    ],
};

/// The bound is the queue's limit and a producer's window (see ARCHITECTURE.md).
const BACKLOG: Gauge =
    Gauge::judged("most batches waiting on the broker", "messages", Better::Lower, 0.50).demand(1_256.0);

/// How often everybody's memory is looked at, and how much waits on the broker.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Bench {
    /// A million tasks of no work, and if the scale says so ten million.
    pub(crate) async fn memory(&mut self) -> Outcome<()> {
        self.memory_of(&MILLION, 1_000_000).await?;
        if self.scale.ten_million {
            self.memory_of(&TEN_MILLION, 10_000_000).await?;
        }
        Ok(())
    }

    async fn memory_of(&mut self, gauges: &Gauges, tasks: u64) -> Outcome<()> {
        let fleet = Fleet::start(&self.site).await?;
        let connection = bare::connect(self.site.url()).await?;
        let channel = connection.create_channel().await?;
        let queue = QueueRole::Tasks.of(&fleet.lane).to_string();
        let start = Instant::now();
        let producer = fleet.submit(&["spin", "--micros", "0", "--tasks", &tasks.to_string()])?;
        let pids = [producer.pid(), fleet.workers.first().map_or(0, Process::pid), fleet.sink.pid()];

        let (mut seen, mut backlog) = ([Memory::default(); 3], 0);
        let look = async {
            let mut looks = interval(LOOK_EVERY);
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            loop {
                looks.tick().await;
                for (seen, pid) in seen.iter_mut().zip(pids) {
                    *seen = memory(pid).unwrap_or(*seen); // the producer ends before we do
                }
                let queue = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
                backlog = backlog.max(queue.await?.message_count());
            }
        };
        let done = tokio::select! {
            done = fleet.see_through(start, producer) => done?,
            failed = look => return failed,
        };
        for (seen, pid) in seen.iter_mut().zip(pids).skip(1) {
            *seen = memory(pid).ok_or("a role is gone")?;
        }
        connection.close(200, "done".into()).await?;
        fleet.end().await?;
        done.must_be_spin_of(tasks)?;

        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        for (gauge, seen) in gauges.at_end.iter().zip(seen) {
            self.report.add(gauge, megabytes(seen.now));
        }
        for (gauge, seen) in gauges.peak.iter().zip(seen) {
            self.report.add(gauge, megabytes(seen.peak));
        }
        self.report.add(&BACKLOG, f64::from(backlog));
        Ok(())
    }
}
