//! Tests of the engine with toy jobs, on ledgers in files.

mod any_order;
mod audits;
mod code_versions;
mod counting;
mod dead_and_parked;
mod finished_facts;
mod job_ends;
mod kept_outputs;
mod ordered_fold;

use std::{
    ops::{ControlFlow, Range},
    path::PathBuf,
};

use gristmill_ledger::{
    DEAD_MAX_MESSAGES, FailureRow, JobState, LedgerReader, OutboxTarget, PARKED_MAX_BYTES,
    PARKED_MAX_MESSAGES, PruneRule, Verification,
};
use gristmill_shared::wire::{Fact, Finished, Progress, REASON_MAX_BYTES, Stopped};
use gristmill_shared::{Account, Conclusion, FailFast, Message, Round};
use tempfile::TempDir;

use super::*;
use crate::tests::toy_jobs::{
    KeeperJob, SubmittedJob, ToyJob, all_refused, all_stored, app, delivery, garbage, open_ledger,
    read_ledger, registry,
};

/// A ledger in a file, and engines that use it one after another.
struct EngineFixture {
    _dir: TempDir,
    path: PathBuf,
}

impl EngineFixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Self { _dir: dir, path }
    }

    fn engine(&self) -> LedgerEngine {
        self.engine_with(registry())
    }

    fn engine_with(&self, registry: Registry) -> LedgerEngine {
        LedgerEngine::new(open_ledger(&self.path), registry, Lane::default(), app())
    }

    fn reader(&self) -> LedgerReader {
        read_ledger(&self.path)
    }

    /// Commits messages in one group.
    fn commit(&self, messages: impl IntoIterator<Item = Message>) -> Vec<OutboxBatch> {
        let engine = accept_all(self.engine(), messages);
        engine.commit().unwrap().1.outbox
    }

    fn verify(&self, job: &SubmittedJob) -> Verification {
        let verification = self.reader().verify(job.id).unwrap();
        assert_eq!(verification.problems, Vec::<String>::new());
        verification
    }

    fn account(&self, job: &SubmittedJob) -> Account {
        self.verify(job);
        self.reader().job(job.id).unwrap().unwrap().summary.account
    }

    fn failures(&self, job: &SubmittedJob) -> Vec<FailureRow> {
        let mut failures = Vec::new();
        let mut each = |failure| {
            failures.push(failure);
            ControlFlow::Continue(())
        };
        self.reader().failures(job.id, &mut each).unwrap();
        failures
    }

    fn report(&self, job: &SubmittedJob) -> String {
        let report = self.reader().job(job.id).unwrap().unwrap().report;
        report.map_or_else(String::new, |report| report.get().to_owned())
    }

    fn conclusion(&self, job: &SubmittedJob) -> Conclusion {
        self.reader().job(job.id).unwrap().unwrap().conclusion.unwrap()
    }

    fn state(&self, job: &SubmittedJob) -> JobState {
        self.reader().job(job.id).unwrap().unwrap().summary.state
    }
}

fn accept_all(mut engine: LedgerEngine, messages: impl IntoIterator<Item = Message>) -> LedgerEngine {
    for message in messages {
        engine.accept_result(delivery(message)).unwrap();
    }
    engine
}

fn facts(outbox: &[OutboxBatch]) -> Vec<Fact> {
    let journal = outbox.iter().filter(|batch| batch.target == OutboxTarget::Journal);
    journal.flat_map(|batch| &batch.rows).map(|(_, row)| Fact::decode(&row.message).unwrap()).collect()
}

fn names(outbox: &[OutboxBatch]) -> Vec<&'static str> {
    let name = |fact: Fact| match fact {
        Fact::Opened(_) => "opened",
        Fact::Finished(_) => "finished",
        Fact::Stopped(_) => "stopped",
        Fact::Reopened(_) => "reopened",
        Fact::Missing(_) => "missing",
        Fact::Refused(_) => "refused",
        Fact::Serving(_) => "serving",
    };
    facts(outbox).into_iter().map(name).collect()
}

fn sum(range: Range<u64>) -> String {
    range.sum::<u64>().to_string()
}
