//! The questions of the `sink` commands, answered page by page.

use std::{collections::BTreeSet, ops::ControlFlow};

use gristmill_shared::{JobId, Keep, Round, TaskIndex, wire::MISSING_MAX_RANGES};
use serde_json::value::RawValue;

use crate::{
    DeadMessages, ExportRow, FailureRow, IndexSet, JobKey, JobParts, JobRecord, JobSnapshot, JobSummary,
    JobView, JobsAfter, LedgerAccess, LedgerError, MissingTasks, OutputOrder, OutputPass, OutputRow,
    OutputsPage, PageBound, ParkedMessages, PruneReport, PruneRule, StoredOutputs, Verification, gaps,
    verify,
};

/// Jobs or failures of one page.
const PAGE_MAX_ROWS: usize = 1_000;
/// Rows of outputs of one page. A row has the outputs of one span of a message.
const OUTPUTS_MAX_ROWS: usize = 256;
/// The size of the outputs at which a page ends.
const OUTPUTS_MAX_BYTES: usize = 4 << 20;

/// Reads a ledger, also while a sink uses it. All methods block.
///
/// A job is read as of one commit. Lists of failures and outputs are read in pages, so that a slow
/// reader holds nothing that the sink needs: outputs are those of the moment at which the list
/// began, failures those of the moment of their page. A job that is pruned, or whose failed tasks
/// are sent again, meanwhile is an error.
#[derive(Debug)]
pub struct LedgerReader {
    access: Box<dyn LedgerAccess>,
}

impl LedgerReader {
    /// Creates a reader.
    #[must_use]
    pub fn new(access: Box<dyn LedgerAccess>) -> Self {
        Self { access }
    }

    /// Returns all jobs, the newest first.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn jobs(&mut self) -> Result<Vec<JobSummary>, LedgerError> {
        let (mut jobs, mut after) = (Vec::new(), None);
        loop {
            let page = self.access.jobs(after, PAGE_MAX_ROWS)?;
            let Some(JobRecord { opened, .. }) = page.last() else { return Ok(jobs) };
            after = Some(JobsAfter { submitted_ms: opened.submitted_ms, job: opened.job });
            jobs.extend(page.iter().map(JobSummary::from));
        }
    }

    /// Returns one job, if the ledger has it.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn job(&mut self, job: JobId) -> Result<Option<JobView>, LedgerError> {
        Ok(self.access.job(job, JobParts::View)?.map(view))
    }

    /// Visits the failed tasks of a job by index, one by one.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read, or if the job changes meanwhile.
    pub fn failures(
        &mut self,
        job: JobId,
        each: &mut dyn FnMut(FailureRow) -> ControlFlow<()>,
    ) -> Result<(), LedgerError> {
        let list = JobList::of(&self.snapshot(job, JobParts::Record)?);
        match self.visit_failures(list, each)? {
            ControlFlow::Break(()) => Ok(()),
            ControlFlow::Continue(()) => self.check_unchanged(list),
        }
    }

    /// Visits the kept outputs of a job, one by one: in the order of the tasks, or in the order of
    /// their arrival. There are none if the job keeps none.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read, or if the job changes meanwhile.
    pub fn outputs(
        &mut self,
        job: JobId,
        ordered: bool,
        each: &mut dyn FnMut(TaskIndex, &RawValue) -> ControlFlow<()>,
    ) -> Result<(), LedgerError> {
        self.output_rows(job, ordered, &mut [&mut |row| each(row.index, row.output)])
    }

    /// Visits the kept outputs of a job with their tasks, as [`LedgerReader::outputs`] does, once
    /// for each of `passes` in turn. All passes see the same outputs. The task is `None` if only
    /// its output is kept.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read, or if the job changes meanwhile.
    pub fn output_rows(
        &mut self,
        job: JobId,
        ordered: bool,
        passes: &mut [OutputPass<'_>],
    ) -> Result<(), LedgerError> {
        let list = JobList::of(&self.snapshot(job, JobParts::Record)?);
        let order = if ordered { OutputOrder::Split } else { OutputOrder::Arrival };
        let mut went_on = true;
        for each in passes {
            went_on &= self.visit_outputs(list, order, *each)?.is_continue();
        }
        if went_on { self.check_unchanged(list) } else { Ok(()) }
    }

    /// Visits everything about a job, in the order of [`ExportRow`].
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read, or if the job changes meanwhile. The
    /// last row is left out then.
    pub fn export(
        &mut self,
        job: JobId,
        each: &mut dyn FnMut(ExportRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LedgerError> {
        let whole = self.snapshot(job, JobParts::View)?;
        let list = JobList::of(&whole);
        let (mut failures, mut outputs) = (0, 0);
        let mut flow = each(ExportRow::Job(Box::new(view(whole))));
        if flow.is_continue() {
            flow = self.visit_failures(list, &mut |failure| {
                failures += 1;
                each(ExportRow::Failure(failure))
            })?;
        }
        if flow.is_continue() {
            flow = self.visit_outputs(list, OutputOrder::Split, &mut |row| {
                outputs += 1;
                each(ExportRow::Output(row))
            })?;
        }
        if flow.is_continue() {
            self.check_unchanged(list)?;
            let _ = each(ExportRow::End { failures, outputs }); // the last row
        }
        Ok(())
    }

    /// Proves from the stored rows that every task of the job has exactly one outcome, or reports
    /// what is missing.
    ///
    /// # Errors
    /// If the ledger does not have the job, or cannot be read.
    pub fn verify(&mut self, job: JobId) -> Result<Verification, LedgerError> {
        Ok(verify::verify(self.snapshot(job, JobParts::Proof)?))
    }

    /// Returns the parked messages: those about jobs that the ledger does not know.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn parked(&mut self) -> Result<ParkedMessages, LedgerError> {
        self.access.parked()
    }

    /// Returns the recorded dead messages.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn dead(&mut self) -> Result<DeadMessages, LedgerError> {
        self.access.dead()
    }

    /// Deletes jobs that have ended, with all their rows. A sink may use the ledger meanwhile.
    ///
    /// # Errors
    /// If the ledger cannot be written.
    pub fn prune(&mut self, rule: PruneRule) -> Result<PruneReport, LedgerError> {
        self.access.prune(rule)
    }

    fn snapshot(&mut self, job: JobId, parts: JobParts) -> Result<JobSnapshot, LedgerError> {
        let place = self.access.place().clone();
        self.access.job(job, parts)?.ok_or(LedgerError::NoSuchJob { place, job })
    }

    /// Checks, after the last page, that all pages were of one round of the job.
    fn check_unchanged(&mut self, list: JobList) -> Result<(), LedgerError> {
        let JobList { key, job, round, .. } = list;
        let now = self.access.job(job, JobParts::Record)?;
        let same = now.is_some_and(|now| (now.key, now.record.round) == (key, round));
        if same { Ok(()) } else { Err(LedgerError::Changed { place: self.access.place().clone(), job }) }
    }

    fn visit_failures(
        &mut self,
        list: JobList,
        each: &mut dyn FnMut(FailureRow) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LedgerError> {
        let mut after = None;
        loop {
            let page = self.access.failures(list.key, after, PAGE_MAX_ROWS)?;
            let Some(last) = page.last() else { return Ok(ControlFlow::Continue(())) };
            after = Some(last.index.0);
            if page.into_iter().try_for_each(&mut *each).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    fn visit_outputs(
        &mut self,
        list: JobList,
        order: OutputOrder,
        each: &mut dyn FnMut(OutputRow<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LedgerError> {
        let last_output = list.last_output;
        let bound = PageBound { rows: OUTPUTS_MAX_ROWS, bytes: OUTPUTS_MAX_BYTES };
        let mut after = None;
        loop {
            let page = self.access.outputs(list.key, OutputsPage { order, after, last_output, bound })?;
            let Some(last) = page.last() else { return Ok(ControlFlow::Continue(())) };
            after = Some(match order {
                OutputOrder::Split => i64::try_from(last.first).unwrap_or(i64::MAX),
                OutputOrder::Arrival => last.row,
            });
            for row in &page {
                if self.visit_row(list.job, row, each)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }

    fn visit_row(
        &self,
        job: JobId,
        row: &StoredOutputs,
        each: &mut dyn FnMut(OutputRow<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LedgerError> {
        let damaged = |error: serde_json::Error| LedgerError::Storage {
            place: self.access.place().clone(),
            doing: "being read",
            source: format!("the outputs of job {job} from task {} on: {error}", row.first).into(),
        };
        let outputs: Vec<&RawValue> = serde_json::from_str(&row.outputs).map_err(damaged)?;
        let tasks: Vec<&RawValue> =
            serde_json::from_str(row.tasks.as_deref().unwrap_or("[]")).map_err(damaged)?;
        let mut tasks = tasks.into_iter();
        for (index, output) in (row.first..).zip(outputs) {
            let task = tasks.next();
            if each(OutputRow { index: TaskIndex(index), task, output }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A job whose lists are read, page by page.
#[derive(Debug, Clone, Copy)]
struct JobList {
    key: JobKey,
    job: JobId,
    round: Round,
    /// The number of the last row of outputs at the beginning.
    last_output: i64,
}

impl JobList {
    fn of(snapshot: &JobSnapshot) -> Self {
        let JobSnapshot { key, record, last_output, .. } = snapshot;
        Self { key: *key, job: record.opened.job, round: record.round, last_output: *last_output }
    }
}

fn view(snapshot: JobSnapshot) -> JobView {
    let JobSnapshot { record, builds, report, done, failed, refused, has_kept_tasks, dead_messages, .. } =
        snapshot;
    let end = record.total().unwrap_or(record.counts.reached);
    let refused_tasks = unresolved_tasks(&refused, &done, &failed);
    let missing = record.stalled_ms.map(|_| {
        let (ranges, tasks) = gaps(&done, &failed, 0..end, MISSING_MAX_RANGES);
        MissingTasks { tasks, ranges }
    });
    let keeps_tasks = record.opened.policy.keep == Some(Keep::Tasks) || has_kept_tasks; // by its kind
    JobView::new(record, report, missing, refused_tasks, builds, keeps_tasks, dead_messages)
}

/// Returns the refused tasks that have no outcome: their first ranges, and their number.
fn unresolved_tasks(refused: &IndexSet, done: &IndexSet, failed: &BTreeSet<u64>) -> MissingTasks {
    let mut tasks = MissingTasks::default();
    for range in refused.ranges() {
        let room = MISSING_MAX_RANGES - tasks.ranges.len();
        let (ranges, number) = gaps(done, failed, range, room);
        tasks.tasks += number;
        tasks.ranges.extend(ranges);
    }
    tasks
}
