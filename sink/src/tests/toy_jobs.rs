//! Toy jobs, and the messages of a producer and workers about them.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
};

use gristmill_ledger::{Ledger, LedgerLocation, LedgerReader};
use gristmill_shared::{
    Account, Conclusion, Delivery, Headers, Job, JobError, JobId, Keep, Kind, Lane, Message, Plan, Policy,
    Receipt, Registry, Round, Settlement, Settler, TaskContext, TaskError, TaskIndex, Token, WorkerId,
    wire::{
        Aborted, Audit, Batch, Cancelled, FailedTask, Opened, OutputRun, Reopen, Results, Sealed,
        WireMessage, now_ms,
    },
};
use gristmill_sqlite::{SqliteAccess, SqliteLedger};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::outbox::{OutboxAnswer, OutboxBatch, RefusedRow};

/// Opens a ledger file.
pub(crate) fn open_ledger(path: &Path) -> Box<dyn Ledger> {
    Box::new(SqliteLedger::open(LedgerLocation::File(path.into())).unwrap())
}

/// Opens a ledger file for reading.
pub(crate) fn read_ledger(path: &Path) -> LedgerReader {
    LedgerReader::new(Box::new(SqliteAccess::open(path).unwrap()))
}

/// Adds up outputs.
#[derive(Serialize, Deserialize, Default, Clone)]
pub(crate) struct ToyJob {
    /// Breaks at this index.
    pub(crate) stop_at: Option<u64>,
    /// `collect` panics at this index.
    pub(crate) panic_at: Option<u64>,
    /// The part that the ledger keeps; by default the report.
    #[serde(default)]
    pub(crate) keep: Option<Keep>,
}

impl Job for ToyJob {
    const KIND: &'static str = "toy";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn keep(&self) -> Keep {
        self.keep.unwrap_or(Self::KEEP)
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..=u64::MAX).map(Ok)
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        Ok(task)
    }
    fn collect(&self, report: &mut u64, index: TaskIndex, output: u64) -> ControlFlow<()> {
        *report += output;
        assert!(self.panic_at != Some(index.0), "I cannot bear it");
        if self.stop_at == Some(index.0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn conclude(&self, report: &u64, account: &Account) -> Conclusion {
        Conclusion::answer(format!("{report} from {} tasks", account.done))
    }
}

/// Keeps its outputs; its report never encodes after an output `bad`.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct KeeperJob {}

#[derive(Deserialize, Default)]
pub(crate) struct TouchyReport {
    spoilt: bool,
}

impl Serialize for TouchyReport {
    #[expect(clippy::panic_in_result_fn, reason = "a job may do this too, and it must not be the sink's end")]
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.spoilt, "spoilt");
        serializer.collect_map([("spoilt", false)])
    }
}

impl Job for KeeperJob {
    const KIND: &'static str = "keeper";
    const KEEP: Keep = Keep::Outputs;
    type Task = u64;
    type Output = String;
    type Report = TouchyReport;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, _: u64, _: &TaskContext) -> Result<String, TaskError> {
        Ok(String::new())
    }
    fn collect(&self, report: &mut TouchyReport, _: TaskIndex, output: String) -> ControlFlow<()> {
        report.spoilt |= output == "bad";
        ControlFlow::Continue(())
    }
}

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register::<ToyJob>().unwrap();
    registry.register::<KeeperJob>().unwrap();
    registry
}

/// A job, as its producer and its workers know it.
#[derive(Clone, Debug)]
pub(crate) struct SubmittedJob {
    pub(crate) id: JobId,
    pub(crate) opened: Opened,
}

impl SubmittedJob {
    pub(crate) fn new<J: Job>(job: &J) -> Self {
        let id = JobId::generate();
        let opened = Opened {
            job: id,
            kind: Kind::new(J::KIND).unwrap(),
            spec: serde_json::value::to_raw_value(job).unwrap(),
            policy: Policy::default(),
            plan: Plan::unknown(),
            lane: Lane::default(),
            submitted_ms: now_ms(),
            version: J::VERSION,
            build: None,
        };
        Self { id, opened }
    }

    pub(crate) fn toy() -> Self {
        Self::new(&ToyJob::default())
    }

    pub(crate) fn planned(mut self, tasks: u64) -> Self {
        self.opened.plan = Plan::of(tasks);
        self
    }

    pub(crate) fn opened(&self) -> Message {
        message(&self.opened)
    }

    pub(crate) fn sealed(&self, total: u64) -> Message {
        message(&Sealed { job: self.id, total, digest: format!("of {total}") })
    }

    pub(crate) fn aborted(&self) -> Message {
        message(&Aborted { job: self.id, reason: "no such file".into() })
    }

    pub(crate) fn cancelled(&self) -> Message {
        message(&Cancelled { job: self.id, reason: "lunch".into() })
    }

    pub(crate) fn reopen(&self, indices: &[u64]) -> Message {
        message(&Reopen {
            job: self.id,
            indices: indices.iter().copied().map(TaskIndex).collect(),
            adopt_version: false,
        })
    }

    pub(crate) fn audit(&self, from: u64) -> Message {
        message(&Audit { job: self.id, from: TaskIndex(from) })
    }

    /// Results of several spans: first index and outputs as JSON.
    pub(crate) fn spans(&self, spans: &[(u64, u32, &str)], failed: &[u64], round: u32) -> Message {
        let outputs: Vec<_> = spans.iter().map(|(_, _, outputs)| raw(outputs)).collect();
        let done = spans.iter().zip(&outputs).map(|((first, count, _), outputs)| OutputRun {
            first: TaskIndex(*first),
            count: *count,
            outputs,
            tasks: None,
        });
        let task = raw("\"payload\"");
        let failed = failed.iter().map(|index| FailedTask {
            index: TaskIndex(*index),
            reason: format!("task {index} is bad").into(),
            attempts: 5,
            losses: 0,
            task: &task,
        });
        message(&Results {
            job: self.id,
            round: Round(round),
            worker: app(),
            busy_us: 10,
            done: done.collect(),
            failed: failed.collect(),
            version: 0,
            build: None,
        })
    }

    /// Tasks that give their index.
    pub(crate) fn done(&self, indices: std::ops::Range<u64>) -> Message {
        let outputs = serde_json::to_string(&indices.clone().collect::<Vec<_>>()).unwrap();
        self.spans(&[(indices.start, u32::try_from(indices.end - indices.start).unwrap(), &outputs)], &[], 0)
    }

    pub(crate) fn failed(&self, indices: &[u64]) -> Message {
        self.spans(&[], indices, 0)
    }

    /// A batch, as a worker received it.
    pub(crate) fn batch(&self, first: u64, count: u32) -> Message {
        let tasks: Vec<u64> = (first..first + u64::from(count)).collect();
        let tasks = serde_json::value::to_raw_value(&tasks).unwrap();
        let Opened { kind, spec, policy, .. } = &self.opened;
        let (kind, policy) = (kind.clone(), policy.clone());
        let first = TaskIndex(first);
        Batch {
            job: self.id,
            kind,
            spec,
            policy,
            round: Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first,
            count,
            tasks: &tasks,
        }
        .to_message(Headers { attempt: 2, ..Headers::default() }, app().as_str())
    }
}

pub(crate) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).unwrap()
}

pub(crate) fn message(body: &impl WireMessage) -> Message {
    body.message("an id".into(), app().as_str())
}

pub(crate) fn garbage() -> Message {
    Message {
        id: "1".into(),
        form: "spam.v1".into(),
        body: (&b"\xff not ours"[..]).into(),
        ..Message::default()
    }
}

pub(crate) fn app() -> WorkerId {
    WorkerId::new("toy").unwrap()
}

/// Records acknowledgements.
#[derive(Debug, Default)]
pub(crate) struct AckRecorder(pub(crate) Mutex<Vec<u64>>);

impl Settler for AckRecorder {
    fn settle(&self, token: Token, how: Settlement) {
        assert_eq!(how, Settlement::Ack);
        self.0.lock().unwrap().push(token.tag);
    }
    fn extend(&self, _: Token) {}
}

pub(crate) fn delivery(message: Message) -> Delivery {
    let receipt = Receipt::new(Token { generation: 0, tag: 0 }, Arc::new(AckRecorder::default()));
    Delivery { message, deliveries_before: 0, receipt }
}

/// Returns the answer of a broker that stores everything.
pub(crate) fn all_stored(batch: &OutboxBatch) -> OutboxAnswer {
    let stored = batch.rows.iter().map(|(row, _)| *row).collect();
    OutboxAnswer { target: batch.target, stored, refused: Vec::new() }
}

/// Returns the answer of a broker that refuses everything.
pub(crate) fn all_refused(batch: &OutboxBatch) -> OutboxAnswer {
    let refused = batch.rows.iter().map(|(row, outgoing)| RefusedRow {
        row: *row,
        message: outgoing.message.clone(),
        why: "too large".into(),
    });
    OutboxAnswer { target: batch.target, stored: Vec::new(), refused: refused.collect() }
}
