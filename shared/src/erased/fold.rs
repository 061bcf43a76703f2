//! Folding: outputs become a report, on the sink's side.

use std::{fmt, ops::Range, sync::Arc};

use serde_json::value::RawValue;

use super::{Erased, catch};
use crate::{
    Account, Conclusion, Job, JobError, TaskIndex, finite,
    wire::{DoneSpan, Malformed},
};

/// A job's report so far. Only the sink's ledger thread works with it.
pub trait AnyFold: fmt::Debug + Send {
    /// Folds those outputs of `span` whose index lies in one of `fresh` (ascending, within the span).
    ///
    /// # Errors
    /// After [`CollectError::Malformed`] the report is as before; after [`CollectError::Panicked`] it must be
    /// thrown away and loaded again.
    fn collect_span(&mut self, span: &DoneSpan<'_>, fresh: &[Range<u64>]) -> Result<Collected, CollectError>;

    /// The report, encoded.
    ///
    /// # Errors
    /// If the job's report does not encode as JSON, or contains a float that is not finite.
    fn report(&self) -> Result<Box<RawValue>, JobError>;

    /// Replaces the report by that of [`Job::fold_in_order`]. `outputs` are all that were kept,
    /// encoded, in the order of their indices.
    ///
    /// # Errors
    /// If the job's code panics, or an output does not decode; the report is as before.
    fn fold_in_order(
        &mut self,
        outputs: &mut dyn Iterator<Item = (TaskIndex, Box<RawValue>)>,
    ) -> Result<(), String>;

    /// See [`Job::conclude`]. A panic becomes a conclusion that says so.
    fn conclude(&self, account: &Account) -> Conclusion;
}

/// What folding a span came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Fresh indices whose output does not decode, and why: failures.
    pub undecodable: Vec<(TaskIndex, String)>,
    /// The job ended early with this index; fresh indices after it were not folded.
    pub broke_at: Option<TaskIndex>,
}

/// Why a span was not folded.
#[derive(Debug, PartialEq, Eq)]
pub enum CollectError {
    /// It does not have as many outputs as it says. Nothing was folded.
    Malformed(Malformed),
    /// `collect` panicked, with this text. The report is no longer to be trusted.
    Panicked(String),
}

pub(super) struct Fold<J: Job> {
    pub(super) job: Arc<Erased<J>>,
    pub(super) report: J::Report,
}

impl<J: Job> fmt::Debug for Fold<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fold({})", J::KIND)
    }
}

impl<J: Job> AnyFold for Fold<J> {
    fn collect_span(&mut self, span: &DoneSpan<'_>, fresh: &[Range<u64>]) -> Result<Collected, CollectError> {
        let outputs = decode_outputs::<J>(span).map_err(CollectError::Malformed)?;
        if outputs.len() != span.count as usize {
            return Err(CollectError::Malformed(Malformed::new(format_args!(
                "the span says it has {} outputs, but has {}",
                span.count,
                outputs.len()
            ))));
        }
        let mut tasks = decode_tasks::<J>(span).map_err(CollectError::Malformed)?.into_iter();
        let mut fresh = fresh.iter().peekable();
        let mut collected = Collected::default();
        for (index, output) in (span.first.0..).zip(outputs) {
            let task = tasks.next();
            while fresh.next_if(|range| range.end <= index).is_some() {}
            if fresh.peek().is_none_or(|range| index < range.start) {
                continue;
            }
            let index = TaskIndex(index);
            let (output, task) = match output.and_then(|output| Ok((output, task.transpose()?))) {
                Ok(outcome) => outcome,
                Err(why) => {
                    collected.undecodable.push((index, why));
                    continue;
                }
            };
            let (job, report) = (&self.job.0, &mut self.report);
            let flow = catch(|| match task {
                Some(task) => job.collect_with_task(report, index, task, output),
                None => job.collect(report, index, output),
            });
            if flow.map_err(CollectError::Panicked)?.is_break() {
                collected.broke_at = Some(index);
                break;
            }
        }
        Ok(collected)
    }

    fn report(&self) -> Result<Box<RawValue>, JobError> {
        let report = serde_json::value::to_raw_value(&self.report)?;
        finite::check("report", &self.report, report.get().as_bytes())?;
        Ok(report)
    }

    fn fold_in_order(
        &mut self,
        outputs: &mut dyn Iterator<Item = (TaskIndex, Box<RawValue>)>,
    ) -> Result<(), String> {
        let mut undecodable = None;
        let mut decoded = outputs.map_while(|(index, output)| match serde_json::from_str(output.get()) {
            Ok(output) => Some((index, output)),
            Err(error) => {
                undecodable = Some(format!("the kept output of task {index} does not decode: {error}"));
                None
            }
        });
        let report = catch(|| self.job.0.fold_in_order(&mut decoded))
            .map_err(|panic| format!("fold_in_order panicked: {panic}"))?;
        if let Some(why) = undecodable {
            return Err(why);
        }
        self.report = report;
        Ok(())
    }

    fn conclude(&self, account: &Account) -> Conclusion {
        catch(|| self.job.0.conclude(&self.report, account))
            .unwrap_or_else(|panic| Conclusion::no_answer(format!("conclude panicked: {panic}")))
    }
}

/// The tasks that the job folds beside the outputs, one for each; none if it folds outputs alone.
fn decode_tasks<J: Job>(span: &DoneSpan<'_>) -> Result<Vec<Result<J::Task, String>>, Malformed> {
    if !J::WITH_TASKS {
        return Ok(Vec::new());
    }
    let Some(tasks) = span.tasks else {
        let missing =
            || Err("its task did not come with its output (hint: is its worker of an older build?)".into());
        return Ok((0..span.count).map(|_| missing()).collect());
    };
    let raw: Vec<&RawValue> = serde_json::from_str(tasks.get())
        .map_err(|error| Malformed::new(format_args!("the span's tasks are no array: {error}")))?;
    if raw.len() != span.count as usize {
        let (count, found) = (span.count, raw.len());
        return Err(Malformed::new(format_args!(
            "the span says it has {count} outputs, but has {found} tasks"
        )));
    }
    let decode = |task: &&RawValue| {
        let decoded = catch(|| serde_json::from_str(task.get()).map_err(|error| error.to_string()));
        decoded
            .unwrap_or_else(|panic| Err(format!("panic: {panic}")))
            .map_err(|why| format!("its task does not decode as a task of kind {}: {why}", J::KIND))
    };
    Ok(raw.iter().map(decode).collect())
}

fn decode_outputs<J: Job>(span: &DoneSpan<'_>) -> Result<Vec<Result<J::Output, String>>, Malformed> {
    if let Ok(outputs) = serde_json::from_str::<Vec<J::Output>>(span.outputs.get()) {
        return Ok(outputs.into_iter().map(Ok).collect());
    }
    let raw: Vec<&RawValue> = serde_json::from_str(span.outputs.get())
        .map_err(|error| Malformed::new(format_args!("the span's outputs are no array: {error}")))?;
    let decode = |output: &&RawValue| {
        serde_json::from_str(output.get())
            .map_err(|error| format!("the output does not decode as an output of kind {}: {error}", J::KIND))
    };
    Ok(raw.iter().map(decode).collect())
}
