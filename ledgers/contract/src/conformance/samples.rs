//! Jobs and messages for the checks, and what a ledger shows of them.

use std::{collections::BTreeSet, error::Error, fmt::Debug};

use gristmill_shared::{
    JobId, Kind, Lane, Message, Plan, Policy, Round, WorkerId,
    wire::{BuildShare, Opened},
};
use serde_json::value::RawValue;

use crate::{
    Changes, DeadMessage, IndexSet, JobChange, JobKey, JobRecord, KeptOutputs, Ledger, OutboxTarget,
    PageBound, StoredFailure, StoredJob,
};

/// The result of a check: an observation that breaks the promise, or an error of the store.
pub(super) type Check<T = ()> = Result<T, Box<dyn Error>>;

/// A page that holds everything.
pub(super) const WHOLE_PAGE: PageBound = PageBound { rows: 1_000_000, bytes: 1 << 40 };

/// Breaks the promise unless both are equal.
pub(super) fn equal<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Check {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}").into()) }
}

/// Breaks the promise unless it holds.
pub(super) fn holds(is_true: bool, otherwise: impl Into<String>) -> Check {
    if is_true { Ok(()) } else { Err(otherwise.into().into()) }
}

/// A job in the checker's memory.
#[derive(Debug)]
pub(super) struct SampleJob {
    pub(super) key: Option<JobKey>,
    pub(super) record: JobRecord,
    pub(super) done: IndexSet,
    pub(super) refused: IndexSet,
}

impl SampleJob {
    pub(super) fn new(keeps_outputs: bool) -> Self {
        let opened = Opened {
            job: JobId::generate(),
            kind: Kind::new("sample").expect("it is a name"),
            spec: raw(r#"{"n":1}"#),
            policy: Policy::default(),
            plan: Plan::unknown(),
            lane: Lane::default(),
            submitted_ms: 1_700_000_000_000,
            version: 3,
            build: None,
        };
        let record = JobRecord::new(opened, keeps_outputs);
        Self { key: None, record, done: IndexSet::default(), refused: IndexSet::default() }
    }

    pub(super) fn id(&self) -> JobId {
        self.record.opened.job
    }

    /// Adds outcomes of tasks to the set and to the counts.
    pub(super) fn add_done(&mut self, first: u64, count: u64) {
        self.done.insert(first..first + count);
        (self.record.counts.done, self.record.counts.reached) = (self.done.len(), self.done.end());
    }

    /// Returns the changes of the record and of the sets.
    pub(super) fn change(&mut self) -> JobChange<'_> {
        let (done, refused) = (self.done.take_changed().collect(), self.refused.take_changed().collect());
        JobChange { done, refused, ..JobChange::new(self.key, &self.record) }
    }

    /// Commits the changes alone.
    pub(super) fn commit(&mut self, ledger: &mut dyn Ledger) -> Check {
        let changes = Changes { jobs: vec![self.change()], ..Changes::default() };
        let keys = ledger.commit(&changes)?.keys;
        drop(changes);
        self.key = keys.first().copied();
        holds(self.key.is_some(), "the commit returned no key for the job")
    }
}

pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).expect("it is JSON")
}

pub(super) fn message(id: &str, body: &[u8]) -> Message {
    Message { id: id.into(), form: "sample.v1".into(), body: body.to_vec().into(), ..Message::default() }
}

pub(super) fn failure(reason: &str) -> StoredFailure {
    StoredFailure {
        round: Round(1),
        reason: reason.into(),
        attempts: 3,
        losses: 1,
        worker: Some("worker-1".parse::<WorkerId>().expect("it is a name")),
        payload: Some(r#"{"task":7}"#.into()),
    }
}

pub(super) fn kept(first: u64, outputs: &[&str]) -> KeptOutputs {
    let json = format!("[{}]", outputs.join(","));
    KeptOutputs { first, count: outputs.len() as u64, tasks: Some(json.clone()), outputs: json }
}

pub(super) fn dead(reason: &str, body: &[u8]) -> DeadMessage {
    DeadMessage { received_ms: 5, reason: reason.into(), message: message("dead", body) }
}

/// Returns one change of every part, for a new job.
pub(super) fn every_part<'a>(job: &'a mut SampleJob, report: &'a RawValue, about: JobId) -> Changes<'a> {
    job.add_done(0, 5);
    job.add_done(70_000, 2);
    job.refused.insert(9..11);
    let change = JobChange {
        failures: vec![(6, Some(failure("it failed"))), (8, Some(failure("it failed, too")))],
        outputs: vec![kept(0, &["1", "2"]), kept(70_000, &["\"a\"", "null"])],
        report: Some(report),
        builds: vec![BuildShare { version: 3, build: None, counted: 7, refused: 2 }],
        ..job.change()
    };
    Changes {
        jobs: vec![change],
        unparked: Vec::new(),
        parked: vec![(about, message("p1", b"first")), (about, message("p2", b"second"))],
        dead: vec![dead("spam", b"eggs")],
        settled: Vec::new(),
        outbox: vec![
            (OutboxTarget::Journal, Lane::default(), message("", b"fact")),
            (OutboxTarget::Journal, Lane::default(), message("", b"fact 2")),
            (OutboxTarget::Tasks, Lane::new("night").expect("it is a name"), message("t", b"tasks")),
        ],
    }
}

/// Returns all that a sink can read of these jobs and of the messages, as text.
pub(super) fn observe(ledger: &mut dyn Ledger, jobs: &[JobId]) -> Check<String> {
    let mut seen = vec![format!("{:?}", ledger.outbox_state()?)];
    for job in jobs {
        seen.push(format!("parked about {job}: {:?}", ledger.parked(*job)?));
        let Some(StoredJob { key, record, builds }) = ledger.job(*job)? else {
            seen.push(format!("no job {job}"));
            continue;
        };
        seen.push(format!("{key:?} {record:?} {builds:?}"));
        seen.push(format!("{:?}", ledger.outcomes(key)?));
        seen.push(format!("{:?} {:?}", ledger.report(key)?, ledger.reasons(key, 100)?));
        seen.push(format!("{:?}", ledger.failed_tasks(key, &BTreeSet::new(), WHOLE_PAGE)?));
        seen.push(format!("{:?}", ledger.kept_outputs(key, 0, WHOLE_PAGE)?));
    }
    for target in OutboxTarget::ALL {
        seen.push(format!("{target:?}: {:?}", ledger.outbox(target, 0, WHOLE_PAGE)?));
    }
    Ok(seen.join("\n"))
}
