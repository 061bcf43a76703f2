//! Reopening: failed tasks are sent again in a new round.

use std::collections::BTreeSet;

use gristmill_ledger::{JobState, Ledger, PageBound, RetryTask};
use gristmill_shared::{
    Headers, Message, Registry, Round, TaskIndex, WorkerId,
    wire::{BATCH_MAX_BYTES, BATCH_MAX_TASKS, Batch, Reopen, Reopened},
};
use serde_json::value::RawValue;

use super::{ActiveJob, JobPhase, fold_state::UserCodeError};
use crate::{SinkError, outbox::Outbox};

/// Tasks sent again at a time. The others stay failed; another request sends more.
const REOPEN_MAX_TASKS: usize = 100_000;
/// Payload bytes at which no more tasks are added.
const REOPEN_MAX_BYTES: usize = 64 << 20;

impl ActiveJob {
    /// Sends failed tasks again: those given, or all. The job must be as the ledger has it. Only a
    /// finished job can be reopened: otherwise tasks would be missing that no one sends.
    ///
    /// Returns the number of tasks sent, or the reason why none was.
    pub(crate) fn reopen(
        &mut self,
        reopen: &Reopen,
        ledger: &mut dyn Ledger,
        registry: &Registry,
        (app, outbox): (&WorkerId, &mut Outbox),
    ) -> Result<Result<usize, String>, SinkError> {
        let Some(key) = self.key.filter(|_| self.record.state() == JobState::Finished) else {
            return Ok(Err(format!("it is {}; only a finished job can be reopened", self.record.state())));
        };
        let wanted: BTreeSet<u64> = reopen.indices.iter().map(|index| index.0).collect();
        let tasks = ledger.failed_tasks(
            key,
            &wanted,
            PageBound { rows: REOPEN_MAX_TASKS, bytes: REOPEN_MAX_BYTES },
        )?;
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
        let mut fold_state = match self.load_fold_state(ledger, key, registry)? {
            Ok(fold_state) => fold_state,
            Err(UserCodeError(why)) => {
                self.record.version = before;
                return Ok(Err(why));
            }
        };
        fold_state.forget_failures(tasks.iter().map(|task| task.index));
        self.phase = JobPhase::Running(Box::new(fold_state));
        self.record.end = None;
        self.record.round = Round(self.record.round.0 + 1);
        self.refresh_counts();
        (self.changed, self.was_running) = (true, true);
        let (job, round, version) = (self.record.opened.job, self.record.round, self.record.version);
        outbox.push_fact(&Reopened { job, round, version });
        for run in split_into_runs(&tasks) {
            outbox.push_tasks(self.build_batch(run, app));
        }
        Ok(Ok(tasks.len()))
    }

    fn build_batch(&self, run: &[RetryTask], app: &WorkerId) -> Message {
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
            // The submitter's build does not apply to another version.
            build: opened.build.clone().filter(|_| version == opened.version),
            ..Batch::new(opened, TaskIndex(run[0].index), count, &tasks)
        }
        .to_message(Headers { attempt: run[0].attempts, ..Headers::default() }, app.as_str());
        let headers = &message.headers;
        tracing::debug_span!("send", trace_id = headers.trace_id(), span_id = headers.span_id(), job = %opened.job);
        message
    }
}

/// Splits tasks into runs of consecutive indices and equal attempts that fit into one batch.
fn split_into_runs(tasks: &[RetryTask]) -> Vec<&[RetryTask]> {
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
        let task = |index: u64| RetryTask { index, attempts: 1, payload: "1".into() };
        let lengths =
            |tasks: &[RetryTask]| split_into_runs(tasks).iter().map(|run| run.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[task(1), task(2), task(4), task(5), task(9)]), [2, 2, 1]);
        let many: Vec<RetryTask> = (0..u64::from(BATCH_MAX_TASKS) + 1).map(task).collect();
        assert_eq!(lengths(&many), [BATCH_MAX_TASKS as usize, 1]);
        let large: Vec<RetryTask> =
            (0..3).map(|index| RetryTask { payload: "1".repeat(BATCH_MAX_BYTES), ..task(index) }).collect();
        assert_eq!(lengths(&large), [1, 1, 1]);
        assert_eq!(lengths(&[task(1), RetryTask { attempts: 2, ..task(2) }]), [1, 1]);
    }
}
