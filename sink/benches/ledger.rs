//! The sink alone: telling fresh tasks from known ones, and folding, committing and acknowledging
//! results. `cargo bench -p gristmill-sink`.

use std::{future::pending, ops::ControlFlow, ops::Range, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gristmill_ledger::{IndexSet, LedgerLocation};
use gristmill_shared::{
    Address, AnyJob, Job, JobError, JobId, JournalEntry, Kind, Lane, Message, Outgoing, Plan, Policy,
    QueueRole, Registry, Round, TaskContext, TaskError, TaskIndex, Transport, WorkerId, erase,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{Fact, Opened, OutputRun, Results, Sealed, WireMessage as _, now_ms},
};
use gristmill_sink::{Sink, SinkConfig};
use gristmill_sqlite::SqliteLedger;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::runtime::Runtime;

criterion_group!(ledger, dedupe, commit);
criterion_main!(ledger);

/// Tasks of each job.
const TASK_COUNT: u64 = 100_000;
/// Tasks of each message: one alone, a usual number, the most.
const MESSAGE_TASK_COUNTS: [u64; 3] = [1, 100, 10_000];
/// Messages that are sent to the sink at a time.
const MESSAGES_AT_ONCE: usize = 256;

/// Folds spans of equal size, of which every other one is a repetition.
fn dedupe(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dedupe");
    group.throughput(Throughput::Elements(TASK_COUNT));
    for size in MESSAGE_TASK_COUNTS {
        group.bench_with_input(BenchmarkId::from_parameter(size), &size, |bencher, size| {
            bencher.iter(|| {
                let mut set = IndexSet::default();
                for span in spans(*size).step_by(2).chain(spans(*size)) {
                    for fresh in set.missing(span) {
                        set.insert(fresh);
                    }
                }
                let changed = set.take_changed().count();
                assert!(
                    set.len() == TASK_COUNT && changed > 0,
                    "{} of {TASK_COUNT}, {changed} changed",
                    set.len()
                );
            });
        });
    }
}

/// Passes a whole job's results through the sink into a ledger on disk: decoded, folded, committed
/// and acknowledged.
fn commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(10);
    for size in MESSAGE_TASK_COUNTS {
        let tasks = TASK_COUNT.min(size * 1_000);
        group.throughput(Throughput::Elements(tasks));
        group.bench_with_input(BenchmarkId::from_parameter(size), &size, |bencher, size| {
            let runtime = Runtime::new().expect("a runtime needs only a few file descriptors");
            let sink = runtime.block_on(BenchSink::start());
            bencher.iter(|| runtime.block_on(sink.fold(SumJob { tasks }, *size)));
        });
    }
}

fn spans(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..TASK_COUNT)
        .step_by(usize::try_from(size).unwrap_or(1))
        .map(move |first| first..TASK_COUNT.min(first + size))
}

/// A sink with a ledger on disk, whose results come from here instead of from workers.
struct BenchSink {
    transport: Arc<dyn Transport>,
    _dir: tempfile::TempDir,
}

impl BenchSink {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("there is room for a ledger");
        let mut registry = Registry::default();
        registry.register::<SumJob>().expect("it is the first");
        let transport: Arc<dyn Transport> = MemoryTransport::new();
        let ledger = SqliteLedger::open(LedgerLocation::File(dir.path().join("ledger")));
        let config = SinkConfig::new(registry, Lane::default(), bench());
        let sink = Sink::open(config, Box::new(ledger.expect("there is room for a ledger")));
        let sink = sink.expect("a ledger can be made");
        let claimed = sink.claim(Arc::clone(&transport)).await.expect("nobody else has the lane");
        tokio::spawn(claimed.run_until(pending()));
        Self { transport, _dir: dir }
    }

    /// Sends all messages of a job's producer and workers to the sink, and waits for the end.
    async fn fold(&self, count: SumJob, size: u64) {
        let (job, tasks) = (JobId::generate(), count.tasks);
        let messages = messages(job, count, size);
        let publisher = self.transport.publisher().await.expect("nobody closes it");
        let mut journal = self.transport.journal().await.expect("nobody closes it");
        let sent = async {
            for some in messages.chunks(MESSAGES_AT_ONCE) {
                let to = || Address::Queue(QueueRole::Results.of(&Lane::default()));
                let some = some.iter().map(|message| Outgoing { to: to(), message: message.clone() });
                publish_until_stored(&*publisher, some.collect()).await.expect("it takes everything");
            }
        };
        let ended = async {
            loop {
                if let JournalEntry::Fact(message) = journal.next().await.expect("nobody closes it")
                    && let Ok(Fact::Finished(finished)) = Fact::decode(&message)
                    && finished.job == job
                {
                    return finished;
                }
            }
        };
        let ((), finished) = tokio::join!(sent, ended);
        assert_eq!(finished.account.done, tasks);
        assert_eq!(finished.conclusion.text, (tasks * (tasks - 1) / 2).to_string());
    }
}

fn messages(job: JobId, count: SumJob, size: u64) -> Vec<Message> {
    let (tasks, erased): (_, Arc<dyn AnyJob>) = (count.tasks, erase(count));
    let opened = Opened {
        job,
        kind: Kind::new(SumJob::KIND).expect("a kind that is registered"),
        spec: erased.spec().expect("it is small"),
        policy: Policy::default(),
        plan: erased.plan().expect("it has one"),
        lane: Lane::default(),
        submitted_ms: now_ms(),
        version: 0,
        build: None,
    };
    let sealed = Sealed { job, total: tasks, digest: "0".into() };
    let results = (0..tasks).step_by(usize::try_from(size).unwrap_or(1)).map(|first| {
        let last = tasks.min(first + size);
        let json = serde_json::to_string(&(first..last).collect::<Vec<_>>()).expect("numbers are JSON");
        let outputs = RawValue::from_string(json).expect("it was just encoded");
        let count = u32::try_from(last - first).expect("a batch is small");
        let done = vec![OutputRun { first: TaskIndex(first), count, outputs: &outputs, tasks: None }];
        let results = Results {
            job,
            round: Round(0),
            worker: bench(),
            busy_us: 1,
            done,
            failed: Vec::new(),
            version: 0,
            build: None,
        };
        results.message(format!("{job}/{first}"), "bench")
    });
    let opened = opened.message(format!("{job}/opened"), "bench");
    let sealed = sealed.message(format!("{job}/sealed"), "bench");
    [opened].into_iter().chain(results).chain([sealed]).collect()
}

fn bench() -> WorkerId {
    WorkerId::new("bench").expect("a name of the right characters")
}

/// Adds up its outputs.
#[derive(Debug, Serialize, Deserialize)]
struct SumJob {
    tasks: u64,
}

impl Job for SumJob {
    const KIND: &'static str = "count";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::of(self.tasks))
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..self.tasks).map(Ok)
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        Ok(task)
    }
    fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
        *report += output;
        ControlFlow::Continue(())
    }
}
