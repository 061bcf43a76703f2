//! Tasks without an outcome: answers to audits, stalls, and the export.

use std::time::Duration;

use gristmill_shared::{
    TaskIndex, Topic,
    wire::{Event, Missing},
};

use super::*;
use gristmill_ledger::ExportRow;

fn stalling(fixture: &EngineFixture, after: Duration) -> LedgerEngine {
    fixture.engine().stall_after(Some(after))
}

fn missing(outbox: &[OutboxBatch]) -> Missing {
    match facts(outbox).pop() {
        Some(Fact::Missing(missing)) => missing,
        other => panic!("{other:?}"),
    }
}

fn ranges(missing: &Missing) -> Vec<(u64, u64)> {
    missing.ranges.iter().map(|(first, count)| (first.0, *count)).collect()
}

#[test]
fn audit_lists_missing_tasks() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let outbox =
        fixture.commit([job.opened(), job.done(2..5), job.failed(&[7]), job.sealed(10), job.audit(0)]);
    let told = missing(&outbox);
    assert_eq!((ranges(&told), told.tasks, told.since_ms), (vec![(0, 2), (5, 2), (8, 2)], 6, None));
    let told = missing(&fixture.commit([job.audit(6)]));
    assert_eq!((ranges(&told), told.tasks, told.from.0, told.round.0), (vec![(6, 1), (8, 2)], 3, 6, 0));
    assert_eq!(missing(&fixture.commit([job.audit(99)])).tasks, 0);
    let told = missing(&fixture.commit([job.done(0..10), job.audit(0)]));
    assert_eq!((told.ranges.len(), told.tasks), (0, 0), "nothing is missing of a job that has ended");
}

/// The missing tasks of an unfinished split are those below the highest outcome.
#[test]
fn unfinished_split_lists_known_gaps() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let told = missing(&fixture.commit([job.opened(), job.done(3..5), job.audit(0)]));
    assert_eq!((ranges(&told), told.tasks), (vec![(0, 3)], 3));
    let unknown = SubmittedJob::toy();
    let outbox = fixture.commit([unknown.audit(0)]);
    assert_eq!(
        names(&outbox),
        ["opened", "missing"],
        "a question about a job that is not known is not answered"
    );
    assert!(fixture.reader().parked().unwrap().jobs.is_empty());
}

#[test]
fn missing_ranges_are_paged() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let total = 2 * gristmill_shared::wire::MISSING_MAX_RANGES as u64 + 20;
    let every_other: Vec<u64> = (0..total).step_by(2).collect();
    let told =
        missing(&fixture.commit([job.opened(), job.failed(&every_other), job.sealed(total), job.audit(0)]));
    assert_eq!((told.ranges.len(), told.ranges[999]), (1_000, (TaskIndex(1_999), 1)));
    assert_eq!(told.tasks, 1_010);
    let rest = missing(&fixture.commit([job.audit(2_000)]));
    assert_eq!((rest.ranges.len(), rest.tasks), (10, 10));
}

#[test]
fn stall_is_reported_once() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let engine =
        accept_all(stalling(&fixture, Duration::ZERO), [job.opened(), job.done(0..4), job.sealed(10)]);
    let (mut engine, _) = engine.commit().unwrap();
    drop(engine.take_events());
    engine.find_stalls().unwrap();
    assert!(engine.take_events().is_empty(), "told before it was committed");
    engine.find_stalls().unwrap();
    let (mut engine, committed) = engine.commit().unwrap();
    let told = fixture.reader().job(job.id).unwrap().unwrap();
    let gaps = told.missing.unwrap();
    assert_eq!((gaps.tasks, &gaps.ranges[..]), (6, std::slice::from_ref(&(4..10))));
    assert!(told.summary.stalled_ms.is_some());
    let news = engine.take_events();
    let [(Topic::Job(_, of), Event::Missing(event))] = &news[..] else { panic!("{news:?}") };
    assert_eq!((*of, ranges(event)), (job.id, vec![(4, 6)]));
    assert!(
        event.since_ms.is_some() && committed.outbox.is_empty(),
        "the journal's first batch is still on its way"
    );

    // Another engine knows that the stall was published.
    drop(engine);
    let mut engine = stalling(&fixture, Duration::ZERO);
    engine.watch_running().unwrap();
    engine.find_stalls().unwrap();
    let (engine, committed) = engine.commit().unwrap();
    assert_eq!(names(&committed.outbox), ["opened", "missing"], "both are from before");
    let (mut engine, _) = accept_all(engine, [job.done(0..4), job.done(4..5)]).commit().unwrap();
    let told = fixture.reader().job(job.id).unwrap().unwrap();
    assert_eq!((told.summary.stalled_ms, told.missing), (None, None), "a new outcome ends it");
    engine.find_stalls().unwrap();
    let (engine, _) = engine.commit().unwrap();
    drop(engine);
    assert_eq!(names(&fixture.commit([])), ["opened", "missing", "missing"], "it stalled again");
    fixture.commit([job.done(5..10)]);
    assert_eq!(fixture.reader().job(job.id).unwrap().unwrap().summary.stalled_ms, None);
    assert!(fixture.verify(&job).ok);
}

/// A job that has ended, or is of another lane, does not stall.
#[test]
fn ended_or_foreign_job_never_stalls() {
    let (fixture, ended, mut elsewhere) = (EngineFixture::new(), SubmittedJob::toy(), SubmittedJob::toy());
    elsewhere.opened.lane = Lane::new("night").unwrap();
    fixture.commit([ended.opened(), ended.sealed(0), elsewhere.opened()]);
    let mut engine = stalling(&fixture, Duration::ZERO);
    engine.watch_running().unwrap();
    assert_eq!(engine.stalls_due(), None);
}

#[test]
fn export_has_all_rows() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&KeeperJob {}));
    fixture.commit([
        job.opened(),
        job.spans(&[(2, 1, r#"["c"]"#), (0, 1, r#"["a"]"#)], &[1], 0),
        job.sealed(3),
    ]);
    let export = |most: usize| {
        let mut lines = Vec::new();
        let mut each = |row: ExportRow<'_>| {
            lines.push(serde_json::to_value(row).unwrap());
            if lines.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        fixture.reader().export(job.id, &mut each).unwrap();
        lines
    };
    let lines = export(99);
    assert_eq!(lines[0]["job"]["account"]["done"], 2);
    assert_eq!((&lines[1]["failure"]["index"], &lines[1]["failure"]["worker"]), (&1.into(), &"toy".into()));
    assert_eq!(lines[2].to_string(), r#"{"output":{"index":0,"output":"a"}}"#);
    assert_eq!(lines[3].to_string(), r#"{"output":{"index":2,"output":"c"}}"#);
    assert_eq!(lines[4].to_string(), r#"{"end":{"failures":1,"outputs":2}}"#);
    assert_eq!(lines.len(), 5);
    (1..5).for_each(|most| assert_eq!(export(most), lines[..most]));
    assert!(fixture.reader().export(SubmittedJob::toy().id, &mut |_| panic!("of which job?")).is_err());
}
