//! Outputs and tasks that the ledger keeps of a job beside its report.

use gristmill_ledger::OutputRow;
use gristmill_shared::{
    Keep, TaskIndex,
    wire::{OutputRun, Results, WireMessage},
};
use serde_json::value::RawValue;

use super::*;

fn keeping(mut job: SubmittedJob, keep: Keep) -> SubmittedJob {
    job.opened.policy.keep = Some(keep);
    job
}

/// Outputs of consecutive tasks with those tasks, both as JSON.
fn with_tasks(job: &SubmittedJob, first: u64, count: u32, outputs: &str, tasks: &str) -> Message {
    let raw = |json: &str| RawValue::from_string(json.into()).unwrap();
    let (outputs, tasks) = (raw(outputs), raw(tasks));
    let done = vec![OutputRun { first: TaskIndex(first), count, outputs: &outputs, tasks: Some(&tasks) }];
    let (job, round, worker) = (job.id, Round(0), app());
    let results =
        Results { job, round, worker, busy_us: 1, done, failed: Vec::new(), version: 0, build: None };
    results.message(format!("{job}/{first}"), "test")
}

/// Index, task and output of each row, by index.
fn rows(fixture: &EngineFixture, job: &SubmittedJob) -> Vec<String> {
    let mut rows = Vec::new();
    let mut each = |OutputRow { index, task, output }: OutputRow<'_>| {
        rows.push(format!("{index} {} {output}", task.map_or("-", |task| task.get())));
        ControlFlow::Continue(())
    };
    fixture.reader().output_rows(job.id, true, &mut [&mut each]).unwrap();
    rows
}

/// Tasks stay with their outputs where spans overlap, where an output does not decode, and after a
/// restart of the sink.
#[test]
fn kept_tasks_match_outputs() {
    let (fixture, job) = (EngineFixture::new(), keeping(SubmittedJob::toy(), Keep::Tasks));
    fixture.commit([job.opened(), with_tasks(&job, 2, 2, "[20,30]", r#"["c","d"]"#)]);
    let around = with_tasks(&job, 0, 6, r#"[0,10,7,7,"none",50]"#, r#"["a","b","C","D","e","f"]"#);
    fixture.commit([around, job.spans(&[(6, 1, "[60]")], &[], 0), job.sealed(7)]);
    assert_eq!(
        rows(&fixture, &job),
        [
            r#"0 "a" 0"#,
            r#"1 "b" 10"#,
            r#"2 "c" 20"#,
            r#"3 "d" 30"#,
            r#"5 "f" 50"#,
            "6 - 60", // of a worker that sends no tasks
        ]
    );
    let view = fixture.reader().job(job.id).unwrap().unwrap();
    assert!(view.keeps_outputs && view.keeps_tasks);
    assert_eq!(fixture.account(&job).failed, 1);
}

#[test]
fn policy_decides_what_is_kept() {
    let fixture = EngineFixture::new();
    let choosing = |keep| SubmittedJob::new(&ToyJob { keep: Some(keep), ..ToyJob::default() });
    for (job, outputs, tasks) in [
        (SubmittedJob::toy(), 0, false),
        (choosing(Keep::Outputs), 2, false), // by its parameters
        (choosing(Keep::Tasks), 2, true),
        (keeping(choosing(Keep::Tasks), Keep::Report), 0, false),
        (keeping(SubmittedJob::toy(), Keep::Outputs), 2, false),
        (keeping(SubmittedJob::toy(), Keep::Tasks), 2, true),
    ] {
        fixture.commit([job.opened(), with_tasks(&job, 0, 2, "[1,2]", "[3,4]"), job.sealed(2)]);
        let view = fixture.reader().job(job.id).unwrap().unwrap();
        assert_eq!((view.keeps_outputs, view.keeps_tasks), (outputs > 0, tasks));
        let rows = rows(&fixture, &job);
        assert_eq!(rows.len(), outputs);
        assert!(rows.iter().all(|row| row.contains(" - ") != tasks), "{rows:?}");
        assert!(fixture.verify(&job).ok);
    }
    let job = keeping(SubmittedJob::new(&KeeperJob {}), Keep::Report);
    fixture.commit([job.opened(), job.spans(&[(0, 1, r#"["a"]"#)], &[], 0), job.sealed(1)]);
    assert!(rows(&fixture, &job).is_empty(), "the kind keeps them, this job does not");
    assert!(fixture.verify(&job).ok);
}

/// A span with different numbers of tasks and outputs is malformed as a whole: none of it is
/// folded.
#[test]
fn mismatched_task_count_is_dead() {
    let (fixture, job) = (EngineFixture::new(), keeping(SubmittedJob::toy(), Keep::Tasks));
    let outbox = fixture.commit([job.opened(), with_tasks(&job, 0, 2, "[1,2]", "[3]")]);
    assert_eq!((fixture.account(&job).done, fixture.report(&job)), (0, String::new()));
    let dead = outbox.iter().find(|batch| batch.target == OutboxTarget::Dead).unwrap();
    let reason = dead.rows[0].1.message.headers.reason.as_deref().unwrap();
    assert!(reason.contains("2 outputs, but has 1 tasks"), "{reason}");
}
