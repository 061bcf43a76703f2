//! `gristmill::run`: a job from a program's own code, with no broker.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gristmill::{Error, RunOptions, prelude::*};
use serde::{Deserialize, Serialize};

/// A job over numbers, with ways to fail and with fields that never travel.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Numbers {
    tasks: u64,
    plan: Option<u64>,
    split_fails_at: Option<u64>,
    /// These tasks fail at each try.
    bad: BTreeSet<u64>,
    /// The job ends with this one.
    stop_at: Option<u64>,
    /// The size of each output.
    bytes: usize,
    #[serde(skip)]
    threads: Mutex<BTreeSet<String>>,
    #[serde(skip)]
    collected: AtomicU64,
}

impl Job for Numbers {
    const KIND: &'static str = "numbers";
    type Task = u64;
    type Output = (u64, String);
    type Report = (u64, String);

    fn plan(&self) -> Result<Plan, JobError> {
        match self.plan {
            Some(0) => Err(JobError::new("nothing to do")),
            Some(tasks) => Ok(Plan::of(tasks)),
            None => Ok(Plan::unknown()),
        }
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..self.tasks).map(|task| match self.split_fails_at {
            Some(at) if at == task => Err(JobError::new("the file ends here")),
            _ => Ok(task),
        })
    }
    fn process(&self, task: u64, cx: &TaskContext) -> Result<(u64, String), TaskError> {
        if let Ok(mut threads) = self.threads.lock() {
            threads.insert(format!("{:?}", std::thread::current().id()));
        }
        if self.bad.contains(&task) {
            return Err(TaskError::failed(format!("try {}", cx.attempt())));
        }
        Ok((task, "a".repeat(self.bytes)))
    }
    fn collect(&self, report: &mut (u64, String), _: TaskIndex, output: (u64, String)) -> ControlFlow<()> {
        self.collected.fetch_add(1, Ordering::Relaxed);
        report.0 += output.0;
        report.1 += &output.1;
        if self.stop_at == Some(output.0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn conclude(&self, report: &(u64, String), _: &Account) -> Conclusion {
        Conclusion::answer(report.0.to_string())
    }
}

#[test]
fn run_uses_the_value_it_is_given() {
    let job = Arc::new(Numbers { tasks: 300, ..Numbers::default() });
    let outcome = gristmill::run::<Numbers>(Arc::clone(&job), RunOptions::default().slots(3)).unwrap();
    assert_eq!((outcome.report.0, outcome.conclusion.text.as_str()), (44_850, "44850"));
    assert!(outcome.is_answered() && outcome.failures.is_empty());
    // Fields that do not travel were seen by `process` and by `collect`.
    assert_eq!(job.collected.load(Ordering::Relaxed), 300);
    assert!((1..=3).contains(&job.threads.lock().unwrap().len()));
    // No thread of the run holds the job any more.
    assert_eq!(Arc::strong_count(&job), 1);
}

#[test]
fn run_returns_a_large_report() {
    let job = Numbers { tasks: 40, bytes: 50_000, ..Numbers::default() };
    let outcome = gristmill::run(job, RunOptions::default()).unwrap();
    assert_eq!(outcome.report.1.len(), 2_000_000);
}

#[tokio::test]
async fn run_works_within_async_code() {
    let job = || Numbers { tasks: 10, ..Numbers::default() };
    let blocking = tokio::task::spawn_blocking(move || gristmill::run(job(), RunOptions::default()));
    assert_eq!(blocking.await.unwrap().unwrap().report.0, 45);
    assert_eq!(gristmill::run(job(), RunOptions::default()).unwrap().report.0, 45);
}

#[test]
fn failed_tasks_give_no_answer() {
    let job = Numbers { tasks: 100, bad: (10..40).collect(), ..Numbers::default() };
    let options = RunOptions::default().max_attempts(1).batch(7);
    let outcome = gristmill::run(job, options).unwrap();
    assert_eq!((outcome.account.done, outcome.account.failed), (70, 30));
    assert_eq!(outcome.failures.len(), 16);
    assert!(outcome.failures[&TaskIndex(10)].contains("try 1"), "{:?}", outcome.failures);
    assert!(!outcome.is_answered());
    let error = outcome.into_answer().unwrap_err();
    assert!(error.to_string().starts_with("the job has no answer, 30 of its tasks failed"), "{error}");
}

#[test]
fn early_stop_gives_an_answer() {
    let job = Numbers { tasks: 1_000_000, stop_at: Some(5), ..Numbers::default() };
    let outcome = gristmill::run(job, RunOptions::default().slots(1).batch(1)).unwrap();
    assert!(outcome.account.skipped > 0 || outcome.account.total.is_none(), "{:?}", outcome.account);
    assert_eq!(outcome.into_answer().unwrap().0, 15);
}

#[test]
fn failing_split_is_an_error() {
    for (job, why) in [
        (Numbers { plan: Some(0), ..Numbers::default() }, "nothing to do"),
        (Numbers { tasks: 10, split_fails_at: Some(3), ..Numbers::default() }, "the file ends here"),
    ] {
        let error = gristmill::run(job, RunOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Producer(_)) && error.to_string().contains(why), "{error}");
    }
}

/// A job whose task runs for ever and checks whether it should.
#[derive(Serialize, Deserialize)]
struct EndlessTask {}

impl Job for EndlessTask {
    const KIND: &'static str = "endless";
    type Task = ();
    type Output = ();
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
        std::iter::once(Ok(()))
    }
    fn process(&self, (): (), cx: &TaskContext) -> Result<(), TaskError> {
        loop {
            cx.check()?;
            std::thread::yield_now();
        }
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[test]
fn time_limit_ends_a_task() {
    let options = RunOptions::default().slots(0).max_attempts(1).task_timeout(Duration::from_millis(50));
    let outcome = gristmill::run(EndlessTask {}, options).unwrap();
    assert_eq!((outcome.account.failed, outcome.report), (1, 0));
}
