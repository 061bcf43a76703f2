//! The clerk with toy jobs, on ledgers in files: what is counted, whatever happens when.

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

use gristmill_shared::wire::{Fact, Finished, Progress, REASON_MAX_BYTES, Stopped};
use gristmill_shared::{Account, Conclusion, FailFast, Message, Round};
use tempfile::TempDir;

use super::*;
use crate::{
    FailureRow, JobState, LedgerPlace, LedgerReader, Verification,
    ledger::{outbox_rows::Target, parked_rows},
    tests::toy_jobs::{Keeper, Submitted, Toy, all_refused, all_stored, app, delivery, garbage, registry},
};

/// A ledger in a file, and clerks who work with it one after another.
struct Office {
    _dir: TempDir,
    path: PathBuf,
}

impl Office {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Self { _dir: dir, path }
    }

    fn clerk(&self) -> Clerk {
        self.clerk_with(registry())
    }

    fn clerk_with(&self, registry: Registry) -> Clerk {
        let ledger = Ledger::open(LedgerPlace::File(self.path.clone())).unwrap();
        Clerk::new(ledger, registry, Lane::default(), app())
    }

    fn reader(&self) -> LedgerReader {
        LedgerReader::open(&self.path).unwrap()
    }

    /// Takes in messages in one group.
    fn take(&self, messages: impl IntoIterator<Item = Message>) -> Vec<OutboxBatch> {
        let clerk = take(self.clerk(), messages);
        clerk.commit().unwrap().1.outbox
    }

    fn verify(&self, job: &Submitted) -> Verification {
        let verification = self.reader().verify(job.id).unwrap();
        assert_eq!(verification.problems, Vec::<String>::new());
        verification
    }

    fn account(&self, job: &Submitted) -> Account {
        self.verify(job);
        self.reader().job(job.id).unwrap().unwrap().summary.account
    }

    fn failures(&self, job: &Submitted) -> Vec<FailureRow> {
        let mut failures = Vec::new();
        let mut each = |failure| {
            failures.push(failure);
            ControlFlow::Continue(())
        };
        self.reader().failures(job.id, &mut each).unwrap();
        failures
    }

    fn report(&self, job: &Submitted) -> String {
        let report = self.reader().job(job.id).unwrap().unwrap().report;
        report.map_or_else(String::new, |report| report.get().to_owned())
    }

    fn conclusion(&self, job: &Submitted) -> Conclusion {
        self.reader().job(job.id).unwrap().unwrap().conclusion.unwrap()
    }

    fn state(&self, job: &Submitted) -> JobState {
        self.reader().job(job.id).unwrap().unwrap().summary.state
    }
}

fn take(mut clerk: Clerk, messages: impl IntoIterator<Item = Message>) -> Clerk {
    for message in messages {
        clerk.take(delivery(message)).unwrap();
    }
    clerk
}

fn facts(outbox: &[OutboxBatch]) -> Vec<Fact> {
    let journal = outbox.iter().filter(|batch| batch.target == Target::Journal);
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
