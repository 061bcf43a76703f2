//! The memory of each role and the backlog on the broker, after many tasks.

use std::time::{Duration, Instant};

use gristmill_shared::QueueRole;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use tokio::time::interval;

use crate::{
    Bench, BenchResult, bare,
    figure::{Better, FigureSpec},
    fleet::BenchFleet,
    process::BenchProcess,
    usage::{MemoryUse, memory},
};

/// The figures of a run of one size, for producer, worker and sink.
struct MemoryGauges {
    at_end: [FigureSpec; 3],
    peak: [FigureSpec; 3],
}

const fn role_gauge(name: &'static str) -> FigureSpec {
    FigureSpec::judged(name, "MB", Better::Lower, 0.20)
}

const MILLION_GAUGES: MemoryGauges = MemoryGauges {
    at_end: [
        role_gauge("memory after 1 M tasks: producer").demand(40.0),
        role_gauge("memory after 1 M tasks: worker").demand(60.0),
        role_gauge("memory after 1 M tasks: sink").demand(80.0),
    ],
    peak: [
        FigureSpec::shown("peak memory, 1 M tasks: producer", "MB", Better::Lower),
        FigureSpec::shown("peak memory, 1 M tasks: worker", "MB", Better::Lower),
        FigureSpec::shown("peak memory, 1 M tasks: sink", "MB", Better::Lower),
    ],
};

const TEN_MILLION_GAUGES: MemoryGauges = MemoryGauges {
    at_end: [
        role_gauge("memory after 10 M tasks: producer").demand(40.0),
        role_gauge("memory after 10 M tasks: worker").demand(60.0),
        role_gauge("memory after 10 M tasks: sink").demand(80.0),
    ],
    peak: [
        FigureSpec::shown("peak memory, 10 M tasks: producer", "MB", Better::Lower),
        FigureSpec::shown("peak memory, 10 M tasks: worker", "MB", Better::Lower),
        FigureSpec::shown("peak memory, 10 M tasks: sink", "MB", Better::Lower),
    ],
};

/// The largest backlog. Its bound is the queue's limit plus a producer's window (see
/// ARCHITECTURE.md).
const BACKLOG_MAX: FigureSpec =
    FigureSpec::judged("most batches waiting on the broker", "messages", Better::Lower, 0.50).demand(1_256.0);

/// The interval at which memory and backlog are read.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Bench {
    /// Runs a million tasks without work, and ten million if the scale includes them.
    pub(crate) async fn measure_memory(&mut self) -> BenchResult<()> {
        self.measure_memory_of(&MILLION_GAUGES, 1_000_000).await?;
        if self.scale.ten_million {
            self.measure_memory_of(&TEN_MILLION_GAUGES, 10_000_000).await?;
        }
        Ok(())
    }

    async fn measure_memory_of(&mut self, gauges: &MemoryGauges, tasks: u64) -> BenchResult<()> {
        let fleet = BenchFleet::start(&self.env).await?;
        let connection = bare::connect(self.env.url()).await?;
        let channel = connection.create_channel().await?;
        let queue = QueueRole::Tasks.of(&fleet.lane).to_string();
        let start = Instant::now();
        let producer = fleet.submit(&["spin", "--micros", "0", "--tasks", &tasks.to_string()])?;
        let pids = [producer.pid(), fleet.workers.first().map_or(0, BenchProcess::pid), fleet.sink.pid()];

        let (mut seen, mut backlog) = ([MemoryUse::default(); 3], 0);
        let poll = async {
            let mut polls = interval(POLL_INTERVAL);
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            loop {
                polls.tick().await;
                for (seen, pid) in seen.iter_mut().zip(pids) {
                    *seen = memory(pid).unwrap_or(*seen); // the producer ends before the loop does
                }
                let queue = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
                backlog = backlog.max(queue.await?.message_count());
            }
        };
        let done = tokio::select! {
            done = fleet.wait_for_job(start, producer) => done?,
            failed = poll => return failed,
        };
        for (seen, pid) in seen.iter_mut().zip(pids).skip(1) {
            *seen = memory(pid).ok_or("a role is gone")?;
        }
        connection.close(200, "done".into()).await?;
        fleet.shut_down().await?;
        done.check_spin(tasks)?;

        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        for (gauge, seen) in gauges.at_end.iter().zip(seen) {
            self.report.add(gauge, megabytes(seen.now));
        }
        for (gauge, seen) in gauges.peak.iter().zip(seen) {
            self.report.add(gauge, megabytes(seen.peak));
        }
        self.report.add(&BACKLOG_MAX, f64::from(backlog));
        Ok(())
    }
}
