//! The typed loop over a batch's tasks.

use serde_json::value::RawValue;

use super::{
    StateCell,
    batch_run::{BatchRun, RawTasks},
    catch,
    in_flight::process_in_flight,
};
use crate::{
    FailureKind, Job, Keep, Policy, TaskError, TaskIndex,
    wire::{Batch, Malformed},
};

pub(super) fn sends_tasks<J: Job>(job: &J, policy: &Policy) -> bool {
    J::WITH_TASKS || policy.keep.unwrap_or_else(|| own_keep(job)) == Keep::Tasks
}

/// Calls [`Job::keep`].
pub(super) fn own_keep<J: Job>(job: &J) -> Keep {
    catch(|| job.keep()).unwrap_or(J::KEEP)
}

pub(super) fn process_batch<J: Job>(
    job: &J,
    state: &StateCell,
    batch: &Batch<'_>,
    run: &mut BatchRun<'_>,
) -> Result<u32, Malformed> {
    let mut raw = RawTasks::new(batch);
    // The usual case decodes the whole array at once. If a task is bad, a second pass decodes them
    // one by one, so that its neighbours still run.
    let decoded = catch(|| serde_json::from_str::<Vec<J::Task>>(batch.tasks.get()));
    let typed: Vec<Result<J::Task, TaskError>> = match decoded {
        Ok(Ok(tasks)) => tasks.into_iter().map(Ok).collect(),
        Ok(Err(_)) | Err(_) => raw.tasks()?.iter().map(|task| decode_task::<J>(task)).collect(),
    };
    if typed.len() != batch.count as usize {
        return Err(batch.wrong_count(typed.len()));
    }
    let travelling = if sends_tasks(job, &batch.policy) { Some(raw.tasks()?.to_vec()) } else { None };
    let Some(prepared) = run.prepare(job, state) else { return Ok(0) };
    if J::IN_FLIGHT > 0 {
        let typed = match prepared {
            Ok(()) => typed,
            Err(trouble) => {
                let failed = || Err(TaskError::from_kind(trouble.clone()));
                typed.into_iter().map(|task| task.and_then(|_| failed())).collect()
            }
        };
        return process_in_flight(job, batch, typed, travelling.as_deref(), &mut raw, run);
    }
    let mut ran = 0;
    for (index, task) in (batch.first.0..).map(TaskIndex).zip(typed) {
        if run.halt.is_stopped() {
            break;
        }
        let outcome = task.and_then(|task| {
            run.start_task(index)?;
            prepared.clone().map_err(TaskError::from_kind)?;
            let output = catch(|| job.process(task, run.task_context()))
                .unwrap_or_else(|panic| Err(TaskError::failed(format_args!("panic: {panic}"))))?;
            let task = travelling.as_ref().and_then(|tasks| tasks.get(ran as usize).copied());
            run.record_output(index, &output, task)
        });
        match outcome.map_err(TaskError::into_kind) {
            Ok(()) => {}
            Err(FailureKind::Stopped) => break,
            Err(trouble) => run.record_failure(index, trouble, raw.tasks()?[ran as usize]),
        }
        ran += 1;
        run.flush_if_due();
    }
    run.flush();
    Ok(ran)
}

fn decode_task<J: Job>(task: &RawValue) -> Result<J::Task, TaskError> {
    let why = match catch(|| serde_json::from_str(task.get())) {
        Ok(Ok(task)) => return Ok(task),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {panic}"),
    };
    Err(TaskError::undecodable(format_args!("the task does not decode as a task of kind {}: {why}", J::KIND)))
}
