//! A whole job within one process, over the memory transport, beside the same work under rayon: the
//! cost of the pipeline without the broker.

use std::{future::pending, num::NonZeroU16, sync::Arc};

use criterion::{Criterion, Throughput};
use gristmill::open_ledger;
use gristmill_jobs::{Spin, SpinTask, SpinWork};
use gristmill_ledger::LedgerLocation;
use gristmill_producer::{JobUpdate, JobWatcher, Producer, SubmitOptions};
use gristmill_shared::{
    Job as _, JobId, Lane, Registry, StopSignal, TaskContext, TaskIndex, Transport, WorkerId, erase,
    memory::MemoryTransport,
};
use gristmill_sink::{Sink, SinkConfig};
use gristmill_worker::Worker;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use tokio::runtime::Runtime;

/// The number of slots, and of rayon's threads.
const SLOT_COUNT: NonZeroU16 = NonZeroU16::new(2).expect("2 is not 0");
/// The work of each job's tasks together, in microseconds of one core.
const WORK_MICROS: u64 = 1_000_000;

/// Measures tasks of 10 µs and of 1 ms.
pub(crate) fn memory_and_rayon(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    group.sample_size(10);
    for micros in [10, 1_000] {
        let spin = Spin {
            tasks: WORK_MICROS / u64::from(micros),
            work: SpinWork::micros(micros),
            ..Spin::default()
        };
        group.throughput(Throughput::Elements(spin.tasks));
        group.bench_function(format!("memory/{micros} µs"), |bencher| {
            let runtime = Runtime::new().expect("a runtime needs only a few file descriptors");
            let pipeline = runtime.block_on(MemoryPipeline::start());
            bencher.iter(|| runtime.block_on(pipeline.run(spin.clone())));
        });
        group.bench_function(format!("rayon/{micros} µs"), |bencher| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(SLOT_COUNT.get().into()).build();
            let pool = pool.expect("two threads can be started");
            bencher.iter(|| pool.install(|| run_rayon(&spin)));
        });
    }
}

/// A producer, and a sink and a worker that wait for jobs.
struct MemoryPipeline {
    transport: Arc<dyn Transport>,
    producer: Producer,
}

impl MemoryPipeline {
    async fn start() -> Self {
        let mut registry = Registry::default();
        registry.register::<Spin>().expect("it is the first");
        let transport: Arc<dyn Transport> = MemoryTransport::new();
        let app = WorkerId::new("bench").expect("a name of the right characters");
        let ledger = open_ledger(LedgerLocation::Memory).expect("a ledger in memory can be made");
        let config = SinkConfig::new(registry.clone(), Lane::default(), app.clone());
        let sink = Sink::open(config, ledger).expect("it has no jobs");
        let claimed = sink.claim(Arc::clone(&transport)).await.expect("the lane is free");
        tokio::spawn(claimed.run_until(pending()));
        let worker = Worker::new(registry, app).slots(SLOT_COUNT);
        tokio::spawn(worker.run_until(Arc::clone(&transport), pending()));
        Self { producer: Producer::new(Arc::clone(&transport), "bench"), transport }
    }

    async fn run(&self, spin: Spin) {
        let expected = format!("{} tasks, sum {}", spin.tasks, sum(spin.tasks));
        let opened = self.producer.open(erase(spin), SubmitOptions::default()).await;
        let submission = opened.expect("the memory transport takes everything");
        let mut watch =
            JobWatcher::open(&*self.transport, submission.id()).await.expect("the transport stays open");
        let answered = async {
            loop {
                if let JobUpdate::Finished(finished) = watch.next().await.expect("the transport stays open") {
                    return finished.conclusion.text;
                }
            }
        };
        let (sent, answer) = tokio::join!(submission.send(), answered);
        sent.expect("a spin can be split");
        assert_eq!(answer, expected);
    }
}

fn run_rayon(spin: &Spin) {
    let context = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
    let outputs = (0..spin.tasks).into_par_iter().map(|index| spin.process(SpinTask::Bare(index), &context));
    let found: u64 = outputs.map(|output| output.expect("a spin that does not fail").index).sum();
    assert_eq!(found, sum(spin.tasks));
}

fn sum(tasks: u64) -> u64 {
    tasks * (tasks - 1) / 2
}
