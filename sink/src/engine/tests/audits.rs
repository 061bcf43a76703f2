//! Tasks without an outcome: who asks, who is told, and when nobody need ask.

use std::time::Duration;

use gristmill_shared::{
    TaskIndex, Topic,
    wire::{Event, Missing},
};

use super::*;
use crate::ExportRow;

fn stalling(office: &Office, after: Duration) -> Clerk {
    office.clerk().stall_after(Some(after))
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
fn an_audit_is_answered_with_what_is_missing_in_the_journal() {
    let (office, job) = (Office::new(), Submitted::toy());
    let outbox = office.take([job.opened(), job.done(2..5), job.failed(&[7]), job.sealed(10), job.audit(0)]);
    let told = missing(&outbox);
    assert_eq!((ranges(&told), told.tasks, told.since_ms), (vec![(0, 2), (5, 2), (8, 2)], 6, None));
    let told = missing(&office.take([job.audit(6)]));
    assert_eq!((ranges(&told), told.tasks, told.from.0, told.round.0), (vec![(6, 1), (8, 2)], 3, 6, 0));
    assert_eq!(missing(&office.take([job.audit(99)])).tasks, 0);
    let told = missing(&office.take([job.done(0..10), job.audit(0)]));
    assert_eq!((told.ranges.len(), told.tasks), (0, 0), "nothing is missing of a job that has ended");
}

#[test]
fn what_is_missing_of_an_unfinished_split_is_what_lies_below_the_highest_outcome() {
    let (office, job) = (Office::new(), Submitted::toy());
    let told = missing(&office.take([job.opened(), job.done(3..5), job.audit(0)]));
    assert_eq!((ranges(&told), told.tasks), (vec![(0, 3)], 3));
    let unknown = Submitted::toy();
    let outbox = office.take([unknown.audit(0)]);
    assert_eq!(
        names(&outbox),
        ["opened", "missing"],
        "a question about a job that is not known is not answered"
    );
    assert!(office.reader().parked().unwrap().jobs.is_empty());
}

#[test]
fn many_ranges_are_told_in_parts() {
    let (office, job) = (Office::new(), Submitted::toy());
    let total = 2 * gristmill_shared::wire::MISSING_MAX_RANGES as u64 + 20;
    let every_other: Vec<u64> = (0..total).step_by(2).collect();
    let told =
        missing(&office.take([job.opened(), job.failed(&every_other), job.sealed(total), job.audit(0)]));
    assert_eq!((told.ranges.len(), told.ranges[999]), (1_000, (TaskIndex(1_999), 1)));
    assert_eq!(told.tasks, 1_010);
    let rest = missing(&office.take([job.audit(2_000)]));
    assert_eq!((rest.ranges.len(), rest.tasks), (10, 10));
}

#[test]
fn a_job_that_stalls_says_so_once_and_goes_on() {
    let (office, job) = (Office::new(), Submitted::toy());
    let clerk = take(stalling(&office, Duration::ZERO), [job.opened(), job.done(0..4), job.sealed(10)]);
    let (mut clerk, _) = clerk.commit().unwrap();
    drop(clerk.take_news());
    clerk.find_stalls().unwrap();
    assert!(clerk.take_news().is_empty(), "told before it was committed");
    clerk.find_stalls().unwrap();
    let (mut clerk, committed) = clerk.commit().unwrap();
    let told = office.reader().job(job.id).unwrap().unwrap();
    let gaps = told.missing.unwrap();
    assert_eq!((gaps.tasks, &gaps.ranges[..]), (6, std::slice::from_ref(&(4..10))));
    assert!(told.summary.stalled_ms.is_some());
    let news = clerk.take_news();
    let [(Topic::Job(_, of), Event::Missing(event))] = &news[..] else { panic!("{news:?}") };
    assert_eq!((*of, ranges(event)), (job.id, vec![(4, 6)]));
    assert!(
        event.since_ms.is_some() && committed.outbox.is_empty(),
        "the journal's first batch is still on its way"
    );

    // Another clerk knows that it was told.
    drop(clerk);
    let mut clerk = stalling(&office, Duration::ZERO);
    clerk.watch_running().unwrap();
    clerk.find_stalls().unwrap();
    let (clerk, committed) = clerk.commit().unwrap();
    assert_eq!(names(&committed.outbox), ["opened", "missing"], "both are from before");
    let (mut clerk, _) = take(clerk, [job.done(0..4), job.done(4..5)]).commit().unwrap();
    let told = office.reader().job(job.id).unwrap().unwrap();
    assert_eq!((told.summary.stalled_ms, told.missing), (None, None), "a new outcome ends it");
    clerk.find_stalls().unwrap();
    let (clerk, _) = clerk.commit().unwrap();
    drop(clerk);
    assert_eq!(names(&office.take([])), ["opened", "missing", "missing"], "it stalled again");
    office.take([job.done(5..10)]);
    assert_eq!(office.reader().job(job.id).unwrap().unwrap().summary.stalled_ms, None);
    assert!(office.verify(&job).ok);
}

#[test]
fn a_job_that_has_ended_or_is_another_lanes_does_not_stall() {
    let (office, ended, mut elsewhere) = (Office::new(), Submitted::toy(), Submitted::toy());
    elsewhere.opened.lane = Lane::new("night").unwrap();
    office.take([ended.opened(), ended.sealed(0), elsewhere.opened()]);
    let mut clerk = stalling(&office, Duration::ZERO);
    clerk.watch_running().unwrap();
    assert_eq!(clerk.stalls_due(), None);
}

#[test]
fn a_job_is_exported_with_everything_about_it() {
    let (office, job) = (Office::new(), Submitted::new(&Keeper {}));
    office.take([job.opened(), job.spans(&[(2, 1, r#"["c"]"#), (0, 1, r#"["a"]"#)], &[1], 0), job.sealed(3)]);
    let export = |most: usize| {
        let mut lines = Vec::new();
        let mut each = |row: ExportRow<'_>| {
            lines.push(serde_json::to_value(row).unwrap());
            if lines.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        office.reader().export(job.id, &mut each).unwrap();
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
    assert!(office.reader().export(Submitted::toy().id, &mut |_| panic!("of which job?")).is_err());
}
