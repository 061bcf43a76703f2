//! Outputs and tasks that the ledger keeps of a job beside its report.

use gristmill_shared::{
    Keep, TaskIndex,
    wire::{DoneSpan, Form, Results},
};
use serde_json::value::RawValue;

use super::*;
use crate::OutputRow;

fn keeping(mut job: Submitted, keep: Keep) -> Submitted {
    job.opened.policy.keep = Some(keep);
    job
}

/// Outputs of consecutive tasks with those tasks, both as JSON.
fn with_tasks(job: &Submitted, first: u64, count: u32, outputs: &str, tasks: &str) -> Message {
    let raw = |json: &str| RawValue::from_string(json.into()).unwrap();
    let (outputs, tasks) = (raw(outputs), raw(tasks));
    let done = vec![DoneSpan { first: TaskIndex(first), count, outputs: &outputs, tasks: Some(&tasks) }];
    let (job, round, worker) = (job.id, Round(0), app());
    let results =
        Results { job, round, worker, busy_us: 1, done, failed: Vec::new(), version: 0, build: None };
    results.message(format!("{job}/{first}"), "test")
}

/// Index, task and output of each row, by index.
fn rows(office: &Office, job: &Submitted) -> Vec<String> {
    let mut rows = Vec::new();
    let mut each = |OutputRow { index, task, output }: OutputRow<'_>| {
        rows.push(format!("{index} {} {output}", task.map_or("-", |task| task.get())));
        ControlFlow::Continue(())
    };
    office.reader().output_rows(job.id, true, &mut [&mut each]).unwrap();
    rows
}

/// Tasks stay with their outputs where spans overlap, where an output is none, and after a new
/// start of the sink.
#[test]
fn kept_tasks_stand_beside_their_outputs() {
    let (office, job) = (Office::new(), keeping(Submitted::toy(), Keep::Tasks));
    office.take([job.opened(), with_tasks(&job, 2, 2, "[20,30]", r#"["c","d"]"#)]);
    let around = with_tasks(&job, 0, 6, r#"[0,10,7,7,"none",50]"#, r#"["a","b","C","D","e","f"]"#);
    office.take([around, job.spans(&[(6, 1, "[60]")], &[], 0), job.sealed(7)]);
    assert_eq!(
        rows(&office, &job),
        [
            r#"0 "a" 0"#,
            r#"1 "b" 10"#,
            r#"2 "c" 20"#,
            r#"3 "d" 30"#,
            r#"5 "f" 50"#,
            "6 - 60", // of a worker that sends no tasks
        ]
    );
    let view = office.reader().job(job.id).unwrap().unwrap();
    assert!(view.keeps_outputs && view.keeps_tasks);
    assert_eq!(office.account(&job).failed, 1);

    let everything = crate::PruneRule { older_than: None, keep: Some(0) };
    assert_eq!(crate::prune(&office.path, everything).unwrap().pruned, 1);
    let connection = rusqlite::Connection::open(&office.path).unwrap();
    let left: u64 = connection.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn submitter_decides_what_is_kept() {
    let office = Office::new();
    for (job, outputs, tasks) in [
        (Submitted::toy(), 0, false),
        (keeping(Submitted::toy(), Keep::Outputs), 2, false),
        (keeping(Submitted::toy(), Keep::Tasks), 2, true),
    ] {
        office.take([job.opened(), with_tasks(&job, 0, 2, "[1,2]", "[3,4]"), job.sealed(2)]);
        let view = office.reader().job(job.id).unwrap().unwrap();
        assert_eq!((view.keeps_outputs, view.keeps_tasks), (outputs > 0, tasks));
        let rows = rows(&office, &job);
        assert_eq!(rows.len(), outputs);
        assert!(rows.iter().all(|row| row.contains(" - ") != tasks), "{rows:?}");
        assert!(office.verify(&job).ok);
    }
    let job = keeping(Submitted::new(&Keeper {}), Keep::Report);
    office.take([job.opened(), job.spans(&[(0, 1, r#"["a"]"#)], &[], 0), job.sealed(1)]);
    assert!(rows(&office, &job).is_empty(), "the kind keeps them, this job does not");
    assert!(office.verify(&job).ok);
}

/// A span that has not as many tasks as outputs is malformed as a whole: nothing of it is folded.
#[test]
fn span_with_another_number_of_tasks_is_dead() {
    let (office, job) = (Office::new(), keeping(Submitted::toy(), Keep::Tasks));
    let outbox = office.take([job.opened(), with_tasks(&job, 0, 2, "[1,2]", "[3]")]);
    assert_eq!((office.account(&job).done, office.report(&job)), (0, String::new()));
    let dead = outbox.iter().find(|batch| batch.target == Target::Dead).unwrap();
    let reason = dead.rows[0].1.message.headers.reason.as_deref().unwrap();
    assert!(reason.contains("2 outputs, but has 1 tasks"), "{reason}");
}
