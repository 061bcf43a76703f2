//! Folding of outputs into a report, in the sink.

use std::{fmt, ops::Range, sync::Arc};

use serde_json::value::RawValue;

use super::{ErasedJob, catch};
use crate::{
    Account, Conclusion, Job, JobError, TaskIndex, finite,
    wire::{Malformed, OutputRun},
};

/// The report of a job so far. Only the sink's ledger thread uses it.
pub trait AnyFold: fmt::Debug + Send {
    /// Folds the outputs of `span` whose index lies in a range of `fresh` (ascending, within the
    /// span).
    ///
    /// # Errors
    /// After [`CollectError::Malformed`] the report is unchanged. After [`CollectError::Panicked`]
    /// callers must discard the report and load it again.
    fn collect_span(&mut self, span: &OutputRun<'_>, fresh: &[Range<u64>])
    -> Result<Collected, CollectError>;

    /// Encodes the report.
    ///
    /// # Errors
    /// If the job's report does not encode as JSON, or contains a float that is not finite.
    fn report(&self) -> Result<Box<RawValue>, JobError>;

    /// Replaces the report by that of [`Job::fold_in_order`]. `outputs` are all kept outputs,
    /// encoded, in the order of their indices.
    ///
    /// # Errors
    /// If the job's code panics, or an output does not decode; the report is unchanged.
    fn fold_in_order(
        &mut self,
        outputs: &mut dyn Iterator<Item = (TaskIndex, Box<RawValue>)>,
    ) -> Result<(), String>;

    /// Calls [`Job::conclude`]. A panic becomes a conclusion with the panic's text.
    fn conclude(&self, account: &Account) -> Conclusion;
}

/// The result of folding a span.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Fresh indices whose output does not decode, with the reason. They count as failures.
    pub undecodable: Vec<(TaskIndex, String)>,
    /// The index at which the job ended early; fresh indices after it were not folded.
    pub broke_at: Option<TaskIndex>,
}

/// The reason why a span was not folded.
#[derive(Debug, PartialEq, Eq)]
pub enum CollectError {
    /// The number of outputs or tasks differs from the span's count, or they are no array. Nothing
    /// was folded.
    Malformed(Malformed),
    /// `collect` panicked with this text. The report may be inconsistent.
    Panicked(String),
}

pub(super) struct TypedFold<J: Job> {
    pub(super) job: Arc<ErasedJob<J>>,
    pub(super) report: J::Report,
}

impl<J: Job> fmt::Debug for TypedFold<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fold({})", J::KIND)
    }
}

impl<J: Job> AnyFold for TypedFold<J> {
    fn collect_span(
        &mut self,
        span: &OutputRun<'_>,
        fresh: &[Range<u64>],
    ) -> Result<Collected, CollectError> {
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

/// Decodes the tasks that the job folds beside the outputs, one for each output. Returns an empty
/// list if the job folds outputs alone.
fn decode_tasks<J: Job>(span: &OutputRun<'_>) -> Result<Vec<Result<J::Task, String>>, Malformed> {
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

fn decode_outputs<J: Job>(span: &OutputRun<'_>) -> Result<Vec<Result<J::Output, String>>, Malformed> {
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
