//! Tests that `run_local` prepares a job's state as a worker does, and folds with tasks as a sink
//! does.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicU32, Ordering},
};

use gristmill_shared::{
    DoneTasks, Job, JobError, State, TaskContext, TaskError, TaskIndex,
    testing::{LocalRun, Repeat, run_local},
};
use serde::{Deserialize, Serialize};

static PREPARE_CALLS: AtomicU32 = AtomicU32::new(0);

/// A job that squares words' lengths by a table; its first `prepare` fails to open the table.
#[derive(Serialize, Deserialize)]
struct Lengths {
    words: Vec<String>,
}

struct SquareTable(Vec<usize>);

impl Job for Lengths {
    const KIND: &'static str = "lengths";
    const WITH_TASKS: bool = true;
    type Task = String;
    type Output = usize;
    type Report = Vec<(u64, String, usize)>;

    fn split(&self) -> impl Iterator<Item = Result<String, JobError>> + Send {
        self.words.iter().cloned().map(Ok)
    }
    fn prepare(&self) -> Result<State, TaskError> {
        if PREPARE_CALLS.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err("the table is locked".into());
        }
        Ok(State::new(SquareTable((0..100).map(|n| n * n).collect())))
    }
    fn process(&self, word: String, cx: &TaskContext) -> Result<usize, TaskError> {
        if cx.state::<String>().is_ok() {
            return Err(TaskError::reject("a state of another type was read"));
        }
        Ok(cx.state::<SquareTable>()?.0[word.len()])
    }
    fn collect(&self, _: &mut Self::Report, index: TaskIndex, _: usize) -> ControlFlow<()> {
        panic!("task {index} was folded without its task")
    }
    fn collect_with_task(
        &self,
        report: &mut Self::Report,
        index: TaskIndex,
        task: String,
        output: usize,
    ) -> ControlFlow<()> {
        report.push((index.0, task, output));
        report.sort();
        ControlFlow::Continue(())
    }
}

/// Each output is folded with its own task, whatever the batches, and the state is opened once for
/// all of them.
#[test]
fn tasks_fold_with_outputs() {
    let words: Vec<String> = (0..50).map(|length| "\"ä".repeat(length % 9)).collect();
    let expected: Vec<_> =
        (0..).zip(&words).map(|(index, word)| (index, word.clone(), word.len() * word.len())).collect();
    let job = Lengths { words };
    let outcome = run_local(&job, LocalRun { repeat: 3, batch: 7, seed: 5 }).unwrap();
    assert!(outcome.failures.is_empty(), "a failed prepare is tried again: {:?}", outcome.failures);
    assert_eq!(outcome.report, expected);
    assert_eq!(PREPARE_CALLS.load(Ordering::SeqCst), 2);
}

/// A job without state.
#[derive(Serialize, Deserialize)]
struct StatelessJob;

impl Job for StatelessJob {
    const KIND: &'static str = "plain";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..10).map(Ok)
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        Ok(task)
    }
    fn collect(&self, sum: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
        *sum += output;
        ControlFlow::Continue(())
    }
}

#[test]
fn stateless_job_runs() {
    assert_eq!(run_local(&StatelessJob, Repeat(2)).unwrap().report, 45);
}

/// Spans with and without tasks stay apart; others join, outputs and tasks alike.
#[test]
fn tasks_join_like_outputs() {
    let span = |first, outputs: &[u32], tasks: &[&str]| {
        DoneTasks::from_outputs(TaskIndex(first), outputs).with_tasks(tasks)
    };
    let mut joined = span(3, &[30, 40], &["c", "d"]);
    joined.append(span(5, &[50], &["e"])).unwrap();
    let bare = joined.append(DoneTasks::from_outputs(TaskIndex(6), &[60])).unwrap_err();
    assert!(bare.into_parts().1.is_none());
    assert!(DoneTasks::from_outputs(TaskIndex(2), &[20]).append(span(3, &[30], &["c"])).is_err());
    let bytes = joined.bytes();
    let (outputs, tasks) = joined.into_parts();
    let tasks = tasks.unwrap();
    assert_eq!((outputs.get(), tasks.get()), ("[30,40,50]", r#"["c","d","e"]"#));
    assert!(bytes >= outputs.get().len() - 1 + r#","tasks":"#.len() + tasks.get().len());
}
