//! Failed tasks are sent again, in a new round.

use std::collections::BTreeSet;

use gristmill_shared::{
    Headers, Message, Registry, Round, TaskIndex, WorkerId,
    wire::{BATCH_MAX_BYTES, BATCH_MAX_TASKS, Batch, Reopen, Reopened},
};
use serde_json::value::RawValue;

use super::{Job, Phase, fold_state::Broken};
use crate::{
    SinkError,
    engine::Outbox,
    ledger::{JobState, Ledger, outcome_rows},
};

/// How many tasks are sent again at a time. The others stay failed; asking again sends further ones.
const REOPEN_MAX_TASKS: usize = 100_000;
/// Tasks are sent again until they take this many bytes.
const REOPEN_MAX_BYTES: usize = 64 << 20;

/// A failed task, with what a worker needs to run it.
#[derive(Debug, Clone)]
struct Task {
    index: u64,
    attempts: u32,
    payload: String,
}

impl Job {
    /// Sends failed tasks again: these, or all. The job must be as the ledger has it. It goes on if every task has an
    /// outcome; otherwise tasks are missing that nobody would send.
    ///
    /// Answers how many tasks were sent, or why none was.
    pub(crate) fn reopen(
        &mut self,
        reopen: &Reopen,
        ledger: &Ledger,
        registry: &Registry,
        (app, outbox): (&WorkerId, &mut Outbox),
    ) -> Result<Result<usize, String>, SinkError> {
        let Some(seq) = self.seq.filter(|_| self.record.state() == JobState::Finished) else {
            return Ok(Err(format!("it is {}; only a finished job can be reopened", self.record.state())));
        };
        let tasks = failed_tasks(ledger, seq, &reopen.indices)?;
        if tasks.is_empty() {
            return Ok(Err("none of these tasks has failed and is known in full".into()));
        }
        let before = self.record.version;
        match registry.version(&self.record.opened.kind) {
            Some(here) if here != before && !reopen.adopt_version => {
                return Ok(Err(format!(
                    "the job has version {before} of its code, and this sink has version {here} (hint: `sink retry \
                     --adopt-version` sends them to workers of version {here})"
                )));
            }
            here => self.record.version = here.unwrap_or(before),
        }
        let mut work = match self.load_work(ledger, seq, registry)? {
            Ok(work) => work,
            Err(Broken(why)) => {
                self.record.version = before;
                return Ok(Err(why));
            }
        };
        work.forget_failures(tasks.iter().map(|task| task.index));
        self.phase = Phase::Running(Box::new(work));
        self.record.end = None;
        self.record.round = Round(self.record.round.0 + 1);
        self.recount();
        (self.changed, self.moves) = (true, true);
        let (job, round, version) = (self.record.opened.job, self.record.round, self.record.version);
        outbox.fact(&Reopened { job, round, version });
        for run in runs(&tasks) {
            outbox.tasks(self.batch(run, app));
        }
        Ok(Ok(tasks.len()))
    }

    fn batch(&self, run: &[Task], app: &WorkerId) -> Message {
        let tasks: Vec<&str> = run.iter().map(|task| task.payload.as_str()).collect();
        let tasks = RawValue::from_string(format!("[{}]", tasks.join(",")));
        let opened = &self.record.opened;
        let tasks = tasks.expect("payloads came as JSON");
        let count = u32::try_from(run.len()).expect("a run is no longer than a batch");
        let version = self.record.version;
        let message = Batch {
            round: self.record.round,
            spent: run[0].attempts,
            version,
            // The submitter's build says nothing of a version that it did not have.
            build: opened.build.clone().filter(|_| version == opened.version),
            ..Batch::new(opened, TaskIndex(run[0].index), count, &tasks)
        }
        .to_message(Headers { attempt: run[0].attempts, ..Headers::default() }, app.as_str());
        let headers = &message.headers;
        tracing::debug_span!("send", trace_id = headers.trace_id(), span_id = headers.span_id(), job = %opened.job);
        message
    }
}

fn failed_tasks(ledger: &Ledger, job: i64, indices: &[TaskIndex]) -> Result<Vec<Task>, SinkError> {
    let wanted: BTreeSet<u64> = indices.iter().map(|index| index.0).collect();
    let (mut tasks, mut bytes) = (Vec::new(), 0);
    ledger.read("failed tasks are read", |connection| {
        outcome_rows::load_payloads(connection, job, &mut |index, attempts, payload| {
            if let Some(payload) = payload.filter(|_| wanted.is_empty() || wanted.contains(&index)) {
                bytes += payload.len();
                tasks.push(Task { index, attempts, payload: payload.to_owned() });
            }
            tasks.len() < REOPEN_MAX_TASKS && bytes < REOPEN_MAX_BYTES
        })
    })?;
    Ok(tasks)
}

/// Consecutive tasks that were tried as often as one another and fit into one batch.
fn runs(tasks: &[Task]) -> Vec<&[Task]> {
    let (mut runs, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (place, task) in tasks.iter().enumerate() {
        let before = &tasks[place.saturating_sub(1)];
        let follows = before.index + 1 == task.index && before.attempts == task.attempts;
        if place > start && !(follows && bytes < BATCH_MAX_BYTES && place - start < BATCH_MAX_TASKS as usize)
        {
            runs.push(&tasks[start..place]);
            (start, bytes) = (place, 0);
        }
        bytes += task.payload.len() + 1;
    }
    runs.push(&tasks[start..]);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_consecutive_and_bounded() {
        let task = |index: u64| Task { index, attempts: 1, payload: "1".into() };
        let lengths = |tasks: &[Task]| runs(tasks).iter().map(|run| run.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[task(1), task(2), task(4), task(5), task(9)]), [2, 2, 1]);
        let many: Vec<Task> = (0..u64::from(BATCH_MAX_TASKS) + 1).map(task).collect();
        assert_eq!(lengths(&many), [BATCH_MAX_TASKS as usize, 1]);
        let large: Vec<Task> =
            (0..3).map(|index| Task { payload: "1".repeat(BATCH_MAX_BYTES), ..task(index) }).collect();
        assert_eq!(lengths(&large), [1, 1, 1]);
        assert_eq!(lengths(&[task(1), Task { attempts: 2, ..task(2) }]), [1, 1]);
    }
}
