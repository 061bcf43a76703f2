//! Results that the broker refuses as too large: they are split into smaller messages, and an
//! outcome that fits into none is a failure.
//!
//! An operator may have set a `max_message_size` below the limit of the wire. An outcome that is
//! too large must not take the others of its message with it.

use gristmill_shared::{
    Message, TaskIndex,
    wire::{Batch, FailedTask, OutputRun, Results, WireMessage, clip_reason, decode},
};
use serde_json::value::RawValue;

/// Returns the messages to publish instead: the two halves of the message, or its only output
/// without the task, or the failure of that task. Returns `None` if there is no replacement: the
/// message has no results, or is already that failure.
pub(crate) fn split_or_fail(refused: &Message, why: &str) -> Option<Vec<Message>> {
    let results: Results<'_> = decode(refused).ok()?;
    let outputs: Vec<DoneTask<'_>> = results.done.iter().flat_map(span_outputs).collect();
    let part = |name, done: &[DoneTask<'_>], failed: Vec<FailedTask<'_>>| {
        let alone = |value: &RawValue| Batch::pack(&[value]);
        let parts: Vec<_> = done.iter().map(|done| (alone(done.output), done.task.map(alone))).collect();
        let spans = done.iter().zip(&parts).map(|(done, (outputs, tasks))| OutputRun {
            first: done.index,
            count: 1,
            outputs,
            tasks: tasks.as_deref(),
        });
        let spans = spans.collect();
        let busy_us = if name == 'a' { results.busy_us } else { 0 };
        let results = Results {
            busy_us,
            done: spans,
            failed,
            worker: results.worker.clone(),
            build: results.build.clone(),
            ..results
        };
        let mut message = results.message(format!("{}{name}", refused.id), &refused.app);
        message.headers.clone_from(&refused.headers);
        message
    };
    match (&outputs[..], &results.failed[..]) {
        ([], []) => None,
        ([DoneTask { index, output, task: Some(_) }], []) => {
            let done = DoneTask { index: *index, output, task: None };
            Some(vec![part('o', &[done], Vec::new())])
        }
        ([DoneTask { index, .. }], []) => {
            Some(vec![part('f', &[], vec![oversize_failure(*index, 0, 0, why)])])
        }
        ([], [failed]) if failed.task.get() == RawValue::NULL.get() => None,
        ([], [failed]) => {
            let FailedTask { index, attempts, losses, .. } = *failed;
            let reason = format!("{} (the task itself is not kept: {why})", failed.reason);
            let failed = FailedTask {
                reason: clip_reason(&reason).into_owned().into(),
                ..oversize_failure(index, attempts, losses, why)
            };
            Some(vec![part('f', &[], vec![failed])])
        }
        (outputs, failed) => {
            let (few, many) = outputs.split_at(outputs.len() / 2);
            let (some, rest) = failed.split_at(failed.len().div_ceil(2));
            Some(vec![part('a', few, some.to_vec()), part('b', many, rest.to_vec())])
        }
    }
}

/// An output, with its task if that travels along.
struct DoneTask<'a> {
    index: TaskIndex,
    output: &'a RawValue,
    task: Option<&'a RawValue>,
}

/// Returns the outputs of a span one by one.
fn span_outputs<'a>(span: &OutputRun<'a>) -> Vec<DoneTask<'a>> {
    let read = |array: &'a RawValue| serde_json::from_str(array.get()).unwrap_or_default(); // our own
    let outputs: Vec<&RawValue> = read(span.outputs);
    let mut tasks = span.tasks.map(read).unwrap_or_default().into_iter();
    let outputs = (span.first.0..).zip(outputs);
    outputs.map(|(index, output)| DoneTask { index: TaskIndex(index), output, task: tasks.next() }).collect()
}

fn oversize_failure(index: TaskIndex, attempts: u32, losses: u32, why: &str) -> FailedTask<'static> {
    let reason = clip_reason(&format!("the broker would not take its output: {why}")).into_owned();
    FailedTask { index, reason: reason.into(), attempts, losses, task: RawValue::NULL }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use gristmill_shared::{BuildId, JobId, Round};

    use super::*;

    /// Publishes results with a limit in bytes. Returns the outputs and the failures that arrive in
    /// the end.
    fn publish_all(limit: usize, results: &Results<'_>) -> Option<(Vec<u64>, Vec<u64>)> {
        let mut queue = VecDeque::from([results.message("id".into(), "worker")]);
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        while let Some(message) = queue.pop_front() {
            if message.body.len() > limit {
                queue.extend(split_or_fail(&message, "it is too large")?);
                continue;
            }
            let results: Results<'_> = decode(&message).unwrap();
            assert_eq!((results.version, results.build.as_ref().map(BuildId::as_str)), (3, Some("b1")));
            for part in results.done.iter().flat_map(span_outputs) {
                assert_eq!(
                    part.task.is_some(),
                    part.index != TaskIndex(9),
                    "a task went with another output"
                );
                done.push(part.index.0);
            }
            failed.extend(results.failed.iter().map(|failed| failed.index.0));
        }
        done.sort_unstable();
        failed.sort_unstable();
        Some((done, failed))
    }

    #[test]
    fn only_oversize_outcomes_fail() {
        let raw = |json: String| RawValue::from_string(json).unwrap();
        let large = "x".repeat(2_000);
        let (first, second) = (raw(format!("[1,2,\"{large}\"]")), raw("[4]".into()));
        let tasks = raw("[10,20,30]".into());
        let task = raw(format!("\"{large}\""));
        let failed = |index| FailedTask {
            index: TaskIndex(index),
            reason: "it failed".into(),
            attempts: 2,
            losses: 0,
            task: &task,
        };
        let results = Results {
            job: JobId::generate(),
            round: Round(0),
            worker: gristmill_shared::WorkerId::generate("test"),
            busy_us: 7,
            done: vec![
                OutputRun { first: TaskIndex(0), count: 3, outputs: &first, tasks: Some(&tasks) },
                OutputRun { first: TaskIndex(9), count: 1, outputs: &second, tasks: None },
            ],
            failed: vec![failed(5), failed(6)],
            version: 3,
            build: Some("b1".parse().unwrap()),
        };
        assert_eq!(publish_all(100_000, &results), Some((vec![0, 1, 2, 9], vec![5, 6])), "all in one");
        assert_eq!(publish_all(4_000, &results), Some((vec![0, 1, 2, 9], vec![5, 6])), "in parts");
        assert_eq!(
            publish_all(1_000, &results),
            Some((vec![0, 1, 9], vec![2, 5, 6])),
            "without what is too large"
        );
        assert_eq!(publish_all(10, &results), None, "nothing goes through");
        assert!(split_or_fail(&Message::default(), "it is none").is_none());
    }
}
