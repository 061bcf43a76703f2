//! A value of each wire type, as the page shows it.

use gristmill_shared::{
    Account, Conclusion, FailFast, JobId, Message, Plan, Policy, Round, TaskIndex,
    wire::{
        self, Aborted, Audit, Batch, Cancelled, FailedTask, Finished, Malformed, Missing, Opened, OutputRun,
        Progress, Refused, Reopen, Reopened, Results, RunningTask, Sealed, Serving, Stopped, WireMessage,
        WorkerHeartbeat,
    },
};
use serde_json::value::RawValue;

/// A wire type with its example.
pub(crate) struct Golden {
    /// The Rust type, as it is written in `wire_message!`.
    pub(crate) type_name: &'static str,
    /// The name on the wire.
    pub(crate) form: &'static str,
    /// The value below, encoded.
    pub(crate) body: String,
    /// Decodes a body and encodes it again.
    pub(crate) recode: fn(&Message) -> Result<String, Malformed>,
}

macro_rules! golden {
    ($Type:ty, $value:expr) => {
        Golden {
            type_name: stringify!($Type),
            form: <$Type as WireMessage>::TYPE,
            body: body(&$value),
            recode: |message| wire::decode::<$Type>(message).map(|value| body(&value)),
        }
    };
}

fn body(value: &impl WireMessage) -> String {
    String::from_utf8(value.message("id".into(), "app").body.to_vec()).unwrap()
}

/// Returns the example of a batch.
pub(crate) fn batch() -> Batch<'static> {
    Batch {
        job: job(),
        kind: "word-count".parse().unwrap(),
        spec: raw(r#"{"min_letters":2}"#),
        policy: policy(),
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(0),
        count: 2,
        tasks: raw(r#"["to be or not to be","that is the question"]"#),
    }
}

/// Returns the example of each wire type.
pub(crate) fn all() -> Vec<Golden> {
    let job = job();
    vec![
        golden!(Batch<'_>, batch()),
        golden!(
            Results<'_>,
            Results {
                job,
                round: Round(0),
                worker: "mill-7-4242-9f3c21".parse().unwrap(),
                busy_us: 1_500,
                done: vec![OutputRun { first: TaskIndex(0), count: 2, outputs: raw("[6,4]"), tasks: None }],
                failed: vec![FailedTask {
                    index: TaskIndex(2),
                    reason: "no letters in the text".into(),
                    attempts: 5,
                    losses: 0,
                    task: raw(r#""...""#),
                }],
                version: 0,
                build: None,
            }
        ),
        golden!(
            Opened,
            Opened {
                job,
                kind: "word-count".parse().unwrap(),
                spec: raw(r#"{"min_letters":2}"#).to_owned(),
                policy: policy(),
                plan: Plan::of(3).unit("lines"),
                lane: "default".parse().unwrap(),
                submitted_ms: 1_733_745_900_352,
                version: 0,
                build: None,
            }
        ),
        golden!(Sealed, Sealed { job, total: 3, digest: "xxh3:2288a1c73cd1def8".into() }),
        golden!(
            Aborted,
            Aborted { job, reason: "split failed at task 2: cannot read hamlet.txt: no such file".into() }
        ),
        golden!(Cancelled, Cancelled { job, reason: "the wrong text".into() }),
        golden!(Reopen, Reopen { job, indices: vec![TaskIndex(2)], adopt_version: false }),
        golden!(Audit, Audit { job, from: TaskIndex(0) }),
        golden!(
            Finished,
            Finished {
                job,
                kind: "word-count".parse().unwrap(),
                round: Round(0),
                account: Account { failed: 1, duplicates: 4, ..account() },
                conclusion: Conclusion::answer("10 words"),
                builds: Vec::new(),
                report: None,
                report_bytes: None,
                failures: Vec::new(),
            }
        ),
        golden!(Stopped, Stopped { job, round: Round(0), reason: "the job has its answer".into() }),
        golden!(Reopened, Reopened { job, round: Round(1), version: 0 }),
        golden!(
            Missing,
            Missing {
                job,
                round: Round(0),
                since_ms: Some(1_733_745_901_204),
                from: TaskIndex(0),
                ranges: vec![(TaskIndex(2), 1)],
                tasks: 1,
                version: 0,
            }
        ),
        golden!(
            Refused,
            Refused {
                job,
                round: Round(0),
                worker: "mill-7-4242-9f3c21".parse().unwrap(),
                reason: "its worker has version 0 of the kind word-count, and the job has 1".into(),
                ranges: vec![(TaskIndex(0), 2)],
            }
        ),
        golden!(
            Serving,
            Serving {
                lane: "default".parse().unwrap(),
                ledger: "0193a1b0-11aa-7c3e-9a44-52d0c7e81b6a".parse().unwrap(),
                place: "mill-7:/var/lib/gristmill/ledger.db".into(),
            }
        ),
        golden!(Progress, Progress { job, account: account(), sealed: true, busy_us: 1_500 }),
        golden!(
            WorkerHeartbeat,
            WorkerHeartbeat {
                worker: "mill-7-4242-9f3c21".parse().unwrap(),
                lane: "default".parse().unwrap(),
                slots: 8,
                busy: 3,
                done: 1_204,
                errors: 2,
                running: vec![RunningTask {
                    job,
                    kind: "crack".parse().unwrap(),
                    first: TaskIndex(0),
                    count: 64,
                    index: TaskIndex(17),
                    attempt: 1,
                    slot: 2,
                    since_ms: 1_764_500_000_000,
                    stuck: true,
                    stopped: true,
                }],
            }
        ),
    ]
}

fn job() -> JobId {
    "0193a1c2-7b40-7d10-8e5a-6f2b1c9d4e3f".parse().unwrap()
}

fn policy() -> Policy {
    Policy { task_timeout_ms: Some(60_000), fail_fast: Some(FailFast::Percent(10)), ..Policy::default() }
}

fn account() -> Account {
    Account { total: Some(3), done: 2, ..Account::default() }
}

fn raw(json: &'static str) -> &'static RawValue {
    serde_json::from_str(json).unwrap()
}
