//! Values of every sort keep their bits on their way through tasks, outputs and reports, though the
//! sink restarts after each commit.

use std::collections::BTreeMap;

use gristmill_shared::{
    AnyJob, BatchLimit, BatchRun, Chunk, Job, JobError, Registry, Round, SplitDigest, SplitStep, StopSignal,
    TaskContext, TaskError, TaskIndex, erase,
    fold::{ExactSum, Tree},
    wire::{Batch, OutputRun, PackedTasks, Results},
};
use proptest::{prelude::*, test_runner::TestRunner};
use serde::{Deserialize, Serialize};

use super::*;
use crate::tests::toy_jobs::{SubmittedJob, message};

const CASE_COUNT: u32 = 256;
/// Messages with a job's results; a separate sink commits each.
const COMMIT_COUNT: usize = 3;

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
struct ValueSet {
    double: f64,
    single: f32,
    natural: u64,
    wide: i128,
    letter: char,
    maybe: Option<f64>,
    nested: BTreeMap<String, BTreeMap<u8, Vec<f64>>>,
}

/// Gives each task's values back. Its own field is a float, too.
#[derive(Serialize, Deserialize, Clone, Debug)]
struct EchoJob {
    factor: f64,
    #[serde(skip)]
    tasks: Vec<ValueSet>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default)]
struct EchoReport {
    /// The spec's float, as the sink has it.
    factor: f64,
    seen: BTreeMap<u64, ValueSet>,
    sum: ExactSum,
    tree: Tree<f64>,
}

impl Job for EchoJob {
    const KIND: &'static str = "echo";
    type Task = ValueSet;
    type Output = ValueSet;
    type Report = EchoReport;

    fn split(&self) -> impl Iterator<Item = Result<ValueSet, JobError>> + Send {
        self.tasks.clone().into_iter().map(Ok)
    }
    fn process(&self, task: ValueSet, _: &TaskContext) -> Result<ValueSet, TaskError> {
        Ok(task)
    }
    fn collect(
        &self,
        report: &mut EchoReport,
        index: TaskIndex,
        output: ValueSet,
    ) -> std::ops::ControlFlow<()> {
        report.factor = self.factor;
        report.sum += output.double;
        report.tree.add(index, output.double / 2.0, |left, right| left / 2.0 - right / 2.0);
        report.seen.insert(index.0, output);
        std::ops::ControlFlow::Continue(())
    }
}

/// The report of a job whose values never left this function, as text: a finite float is printed
/// with as many digits as tell it from all others, and -0.0 with its sign.
fn expected(job: &EchoJob) -> String {
    let mut report = EchoReport::default();
    for (index, values) in (0..).zip(&job.tasks) {
        let _ = job.collect(&mut report, TaskIndex(index), values.clone());
    }
    format!("{report:?}")
}

fn doubles() -> impl Strategy<Value = f64> {
    let all = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |float| float.is_finite());
    let subnormal = any::<u64>().prop_map(|bits| f64::from_bits(bits & !(0x7ff << 52)));
    prop_oneof![4 => all, 1 => subnormal, 1 => Just(-0.0), 1 => any::<i32>().prop_map(f64::from)]
}

fn values() -> impl Strategy<Value = ValueSet> {
    let singles = any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |float| float.is_finite());
    let lists = prop::collection::vec(doubles(), 0..3);
    let nested = prop::collection::btree_map(any::<u8>(), lists, 0..3);
    let nested = prop::collection::btree_map(any::<String>(), nested, 0..2);
    (doubles(), singles, any::<(u64, i128, char)>(), prop::option::of(doubles()), nested).prop_map(
        |(double, single, (natural, wide, letter), maybe, nested)| ValueSet {
            double,
            single,
            natural,
            wide,
            letter,
            maybe,
            nested,
        },
    )
}

fn jobs() -> impl Strategy<Value = EchoJob> {
    (doubles(), prop::collection::vec(values(), COMMIT_COUNT..9))
        .prop_map(|(factor, tasks)| EchoJob { factor, tasks })
}

/// The results of a job's tasks, in [`COMMIT_COUNT`] messages, as a producer and a worker make
/// them.
fn results(job: &EchoJob, submitted: &SubmittedJob) -> Vec<Message> {
    let job = erase(job.clone());
    let (mut split, mut digest) = (job.split_from(TaskIndex(0)).unwrap(), SplitDigest::default());
    let mut messages = Vec::new();
    for first in 0..COMMIT_COUNT {
        let last = first + 1 == COMMIT_COUNT;
        let mut tasks = PackedTasks::default();
        let limit = if last { 1_000 } else { 1 };
        let step = split.split_into(&mut tasks, &mut digest, BatchLimit { tasks: limit, bytes: 1 << 20 });
        assert_eq!(step.unwrap() == SplitStep::End, last);
        messages.push(processed(&*job, submitted, first as u64, tasks));
    }
    messages
}

/// The message that a worker sends after a batch.
fn processed(job: &dyn AnyJob, submitted: &SubmittedJob, first: u64, tasks: PackedTasks) -> Message {
    let count = tasks.count();
    let tasks = tasks.finish();
    let batch = Batch::new(&submitted.opened, TaskIndex(first), count, &tasks);
    let mut chunks = Vec::new();
    let mut hand_on = |chunk: Chunk| chunks.push(chunk);
    let cx = TaskContext::new(submitted.id, batch.first, 0, StopSignal::new());
    job.process_batch(&batch, &mut BatchRun::new(cx, &batch.policy, StopSignal::new(), &mut hand_on))
        .unwrap();
    let done = chunks.into_iter().flat_map(|chunk| chunk.done);
    let done: Vec<_> = done.map(|done| (done.first, done.count, done.into_outputs())).collect();
    let spans = done.iter().map(|(first, count, outputs)| OutputRun {
        first: *first,
        count: *count,
        outputs,
        tasks: None,
    });
    message(&Results {
        job: submitted.id,
        round: Round(0),
        worker: app(),
        busy_us: 1,
        done: spans.collect(),
        failed: Vec::new(),
        version: 0,
        build: None,
    })
}

/// Takes the job through the memory transport, and a sink of its own for each commit, which another
/// follows on the same ledger. Returns the report at the end.
async fn report_after_restarts(job: &EchoJob, dir: &Path) -> String {
    let (transport, submitted) = (MemoryTransport::new(), SubmittedJob::new(job));
    let mut registry = Registry::default();
    registry.register::<EchoJob>().unwrap();
    let ledger = dir.join(format!("{}.ledger", submitted.id));
    let results = results(job, &submitted);
    let mut opened = vec![submitted.opened()];
    for (commit, message) in (1..).zip(results) {
        opened.push(message);
        if commit == COMMIT_COUNT {
            opened.push(submitted.sealed(job.tasks.len() as u64));
        }
        let sink =
            RunningSink::start(TestConfig { registry: registry.clone(), ..config(&ledger) }, &transport);
        publish(&transport, opened.drain(..)).await;
        let tasks = if commit == COMMIT_COUNT { job.tasks.len() } else { commit } as u64;
        let is_committed = || {
            let view = read_ledger(&ledger).job(submitted.id).unwrap();
            view.is_some_and(|view| view.summary.account.done == tasks)
        };
        until("the commit", is_committed).await;
        sink.stop().await.unwrap();
    }
    let mut reader = read_ledger(&ledger);
    assert!(reader.verify(submitted.id).unwrap().ok);
    let report = reader.job(submitted.id).unwrap().unwrap().report.unwrap();
    format!("{:?}", serde_json::from_str::<EchoReport>(report.get()).unwrap())
}

#[test]
fn values_keep_bits_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ProptestConfig { cases: CASE_COUNT, max_shrink_iters: 64, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let checked = runner.run(&jobs(), |job| {
        let found = runtime.block_on(report_after_restarts(&job, dir.path()));
        prop_assert_eq!(found, expected(&job));
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}
