//! Refusal of outcomes from code that may not work on the job: they do not count, and their tasks
//! are sent again.

use std::ops::Range;

use gristmill_ledger::push_range;
use gristmill_shared::{
    BuildId, TaskIndex, WorkerId,
    wire::{MISSING_MAX_RANGES, Malformed, OutputRun, Refused, Results},
};
use serde_json::value::RawValue;

use super::{
    ActiveJob, JobPhase,
    folding::{OutcomeSource, check_range},
};
use crate::outbox::Outbox;

/// Tasks that were refused since the last commit.
#[derive(Debug, Default)]
pub(super) struct PendingRefusal {
    ranges: Vec<Range<u64>>,
    /// The worker that sent the last of their outcomes, and the reason of the refusal.
    last: Option<(WorkerId, String)>,
}

impl ActiveJob {
    /// Returns the reason to refuse outcomes of this code, if any. After the end every outcome
    /// counts as late instead.
    pub(super) fn refusal_reason(&self, version: u32, build: Option<&BuildId>) -> Option<String> {
        let record = &self.record;
        if self.has_ended() {
            return None;
        }
        if version != record.version {
            let (kind, wanted) = (&record.opened.kind, record.version);
            return Some(format!(
                "its worker has version {version} of the kind {kind}, and the job has {wanted}"
            ));
        }
        let wanted = record.bound_build().filter(|wanted| build != Some(*wanted))?;
        let build = build.map_or_else(|| "an unnamed build".into(), |build| format!("build {build}"));
        Some(format!("its worker is of {build}, and the job is for build {wanted} alone (--same-build)"))
    }

    /// True if outcomes come from another build than the one that submitted the job, if that is
    /// known. A worker that does not name its build counts as another one.
    pub(super) fn is_foreign(&self, build: Option<&BuildId>) -> bool {
        let submitted_by = self.record.opened.build.as_ref();
        submitted_by.is_some() && submitted_by != build
    }

    /// Refuses all outcomes of a message: their tasks remain without an outcome, unless they have
    /// one.
    ///
    /// # Errors
    /// If a part is malformed, or about tasks that the job does not have.
    pub(super) fn refuse_results(&mut self, results: &Results<'_>, why: &str) -> Result<(), Malformed> {
        let limit = self.record.limit();
        let mut well_formed = check_range(limit, &results.done, &results.failed);
        let mut ranges = Vec::new();
        for span in &results.done {
            match check_output_count(span) {
                Ok(()) => {
                    ranges.push(span.first.0.min(limit)..span.first.plus(span.count.into()).0.min(limit))
                }
                Err(malformed) => well_formed = well_formed.and(Err(malformed)),
            }
        }
        let failed = results.failed.iter().map(|failed| failed.index.0).filter(|index| *index < limit);
        ranges.extend(failed.map(|index| index..index + 1));
        self.refuse_ranges(&ranges, results.version, results.build.as_ref(), &results.worker, why);
        well_formed
    }

    /// Refuses outputs of another build that do not decode: a type may have changed without a new
    /// version.
    pub(super) fn refuse_undecodable(&mut self, from: OutcomeSource<'_>, undecodable: &[(u64, String)]) {
        let (Some((_, why)), Some(worker)) = (undecodable.first(), from.worker) else { return };
        let why = format!("{why} (was a type changed without a new Job::VERSION?)");
        let ranges: Vec<_> = undecodable.iter().map(|(index, _)| *index..index + 1).collect();
        let version = self.record.version;
        self.refuse_ranges(&ranges, version, from.build, worker, &why);
    }

    fn refuse_ranges(
        &mut self,
        ranges: &[Range<u64>],
        version: u32,
        build: Option<&BuildId>,
        worker: &WorkerId,
        why: &str,
    ) {
        let JobPhase::Running(fold_state) = &mut self.phase else { return };
        self.changed = true;
        let mut refused: Vec<Range<u64>> =
            ranges.iter().flat_map(|range| fold_state.refuse(range.clone())).collect();
        refused.sort_by_key(|range| range.start);
        let all: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let tasks: u64 = refused.iter().map(|range| range.end - range.start).sum();
        self.record.counts.duplicates += all.saturating_sub(tasks);
        let job = self.record.opened.job;
        if self.builds.add(version, build, 0, tasks) {
            tracing::warn!(
                %job, %worker, tasks, build = build.map(BuildId::as_str),
                "outcomes are refused: {why}; their tasks are sent again (hint: stop that worker, or start it from the \
                 build that submitted the job)"
            );
        }
        if !refused.is_empty() {
            let pending = self.refused.get_or_insert_with(PendingRefusal::default);
            pending.ranges.append(&mut refused);
            pending.last = Some((worker.clone(), why.into()));
        }
    }

    /// Publishes the tasks that are to be sent again, once for each commit.
    pub(super) fn publish_refused(&mut self, outbox: &mut Outbox) {
        let Some(PendingRefusal { mut ranges, last: Some((worker, reason)) }) = self.refused.take() else {
            return;
        };
        if self.has_ended() {
            return;
        }
        ranges.sort_by_key(|range| range.start);
        let mut joined = Vec::new();
        for range in ranges {
            push_range(&mut joined, range);
        }
        let (job, round) = (self.record.opened.job, self.record.round);
        for ranges in joined.chunks(MISSING_MAX_RANGES) {
            let ranges =
                ranges.iter().map(|range| (TaskIndex(range.start), range.end - range.start)).collect();
            let (worker, reason) = (worker.clone(), reason.clone());
            outbox.push_fact(&Refused { job, round, worker, reason, ranges });
        }
    }

    /// Counts outcomes by the worker's build, and warns if it did not submit the job.
    pub(super) fn count_build(&mut self, from: OutcomeSource<'_>, outcomes: u64) {
        let OutcomeSource { version, build, .. } = from;
        if outcomes == 0 || from.worker.is_none() {
            return;
        }
        let is_new = self.builds.add(version, build, outcomes, 0);
        if is_new && self.is_foreign(build) {
            tracing::warn!(
                job = %self.record.opened.job,
                build = build.map(BuildId::as_str),
                submitted_by = self.record.opened.build.as_ref().map(BuildId::as_str),
                "workers of another build than the submitter's work on the job (hint: if `process` or a type was changed, \
                 raise Job::VERSION; --same-build lets no other build work on a job)"
            );
        }
    }
}

/// Checks that a span has as many outputs as it says, before its tasks are sent again.
fn check_output_count(span: &OutputRun<'_>) -> Result<(), Malformed> {
    let outputs: Vec<&RawValue> = serde_json::from_str(span.outputs.get())
        .map_err(|error| Malformed::new(format_args!("the span's outputs are no array: {error}")))?;
    if outputs.len() == span.count as usize {
        return Ok(());
    }
    let (said, found) = (span.count, outputs.len());
    Err(Malformed::new(format_args!("the span says it has {said} outputs, but has {found}")))
}
