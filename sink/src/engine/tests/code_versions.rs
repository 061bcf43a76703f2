//! Outcomes of other code than the job's: they do not count, and their tasks are named to be sent
//! again.

use gristmill_shared::{
    BuildId, Job, JobError, Keep, Policy, TaskContext, TaskError, TaskIndex,
    wire::{DoneSpan, Form, Opened, Refused, Reopen, Results},
};
use serde::{Deserialize, Serialize};

use super::*;
use crate::{
    ledger::MissingTasks,
    tests::toy_jobs::{message, raw},
};

/// The toy job after a change: it adds twice each output.
#[derive(Serialize, Deserialize, Default)]
struct Toy2 {
    stop_at: Option<u64>,
}

impl Job for Toy2 {
    const KIND: &'static str = Toy::KIND;
    const VERSION: u32 = 2;
    const KEEP: Keep = Keep::Report;
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        Ok(task)
    }
    fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
        *report += 2 * output;
        ControlFlow::Continue(())
    }
}

fn registry_2() -> Registry {
    let mut registry = Registry::default();
    registry.register::<Toy2>().unwrap();
    registry
}

fn build(name: &str) -> Option<BuildId> {
    Some(BuildId::new(name).unwrap())
}

fn submitted(by: Option<BuildId>, same_build: bool) -> Submitted {
    let toy = Submitted::toy();
    let policy = Policy { same_build, ..Policy::default() };
    Submitted { opened: Opened { build: by, policy, ..toy.opened }, ..toy }
}

/// Results of one span, from a worker with this code.
fn results(job: &Submitted, first: u64, outputs: &str, version: u32, build: Option<BuildId>) -> Message {
    let outputs = raw(outputs);
    let all: Vec<serde_json::Value> = serde_json::from_str(outputs.get()).unwrap();
    let span = DoneSpan { first: TaskIndex(first), count: all.len() as u32, outputs: &outputs, tasks: None };
    message(&Results {
        job: job.id,
        round: Round(0),
        worker: app(),
        busy_us: 10,
        done: vec![span],
        failed: Vec::new(),
        version,
        build,
    })
}

fn refused(outbox: &[OutboxBatch]) -> Vec<(u64, u64)> {
    let ranges = |fact| match fact {
        Fact::Refused(Refused { ranges, .. }) => ranges,
        _ => Vec::new(),
    };
    facts(outbox).into_iter().flat_map(ranges).map(|(first, tasks)| (first.0, tasks)).collect()
}

/// Their number, and their ranges as pairs of start and end.
fn tasks_in(tasks: &MissingTasks) -> (u64, Vec<(u64, u64)>) {
    (tasks.tasks, tasks.ranges.iter().map(|range| (range.start, range.end)).collect())
}

#[test]
fn results_of_another_version_are_refused() {
    let (office, job) = (Office::new(), Submitted::toy());
    let outbox = office.take([
        job.opened(),
        job.done(0..3),
        results(&job, 1, "[100,100,100,100]", 1, None),
        job.sealed(6),
    ]);
    assert_eq!(refused(&outbox), [(3, 2)], "only tasks without an outcome");
    let view = office.reader().job(job.id).unwrap().unwrap();
    assert_eq!(tasks_in(&view.refused), (2, vec![(3, 5)]));
    assert_eq!(view.summary.account.done, 3);
    // The tasks are run again, by a worker of the right version.
    let outbox = office.take([job.done(3..6)]);
    assert_eq!(names(&outbox).last(), Some(&"finished"));
    assert_eq!(office.report(&job), sum(0..6), "nothing of the other version is in the report");
    let view = office.reader().job(job.id).unwrap().unwrap();
    assert_eq!(view.refused.tasks, 0);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    let shares: Vec<_> =
        finished.builds.iter().map(|share| (share.version, share.counted, share.refused)).collect();
    assert_eq!(shares, [(0, 6, 0), (1, 0, 2)]);
    assert_eq!(office.verify(&job).builds, finished.builds);
}

#[test]
fn a_restarted_sink_still_knows_refused_tasks() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take([job.opened(), results(&job, 4, "[1,1]", 7, build("old"))]);
    let outbox = office.take([results(&job, 5, "[1,1]", 7, build("old"))]);
    assert_eq!(refused(&outbox), [(4, 2), (5, 2)], "refused once more, so sent once more");
    let view = office.reader().job(job.id).unwrap().unwrap();
    assert_eq!(tasks_in(&view.refused), (3, vec![(4, 7)]));
    assert_eq!(view.builds[0].refused, 4);
}

#[test]
fn a_refused_span_must_have_its_outputs() {
    let (office, job) = (Office::new(), Submitted::toy());
    let outputs = raw("[1]");
    let span = DoneSpan { first: TaskIndex(0), count: u32::MAX, outputs: &outputs, tasks: None };
    let lie = message(&Results {
        job: job.id,
        round: Round(0),
        worker: app(),
        busy_us: 0,
        done: vec![span],
        failed: Vec::new(),
        version: 1,
        build: None,
    });
    let outbox = office.take([job.opened(), lie]);
    assert_eq!(refused(&outbox), []);
    assert!(outbox.iter().any(|batch| batch.target == Target::Dead), "{outbox:?}");
}

#[test]
fn same_build_refuses_every_other_build() {
    let (office, job) = (Office::new(), submitted(build("new"), true));
    let outbox = office.take([
        job.opened(),
        results(&job, 0, "[1]", 0, build("new")),
        results(&job, 1, "[1]", 0, build("old")),
        results(&job, 2, "[1]", 0, None),
    ]);
    assert_eq!(refused(&outbox), [(1, 2)]);
    assert_eq!(office.report(&job), "1");
}

#[test]
fn another_build_of_the_version_is_named_and_counts() {
    let (office, job) = (Office::new(), submitted(build("new"), false));
    let outbox = office.take([
        job.opened(),
        results(&job, 0, "[1,2]", 0, build("new")),
        results(&job, 2, "[3]", 0, build("old")),
        job.sealed(3),
    ]);
    assert_eq!(office.report(&job), "6");
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    let shares: Vec<_> = finished.builds.iter().map(|share| (share.build.clone(), share.counted)).collect();
    assert_eq!(shares, [(build("new"), 2), (build("old"), 1)]);
    // One build alone, the submitter's, is not worth a word.
    let plain = submitted(build("new"), false);
    let outbox = office.take([plain.opened(), results(&plain, 0, "[1]", 0, build("new")), plain.sealed(1)]);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    assert_eq!(finished.builds, []);
}

#[test]
fn undecodable_output_of_another_build_is_refused() {
    let (office, job) = (Office::new(), submitted(build("new"), false));
    let outbox =
        office.take([job.opened(), results(&job, 0, "[1,\"two\",3]", 0, build("old")), job.sealed(3)]);
    assert_eq!(refused(&outbox), [(1, 1)]);
    assert_eq!((office.state(&job), office.failures(&job).len()), (JobState::Running, 0));
    // The submitter's own build is right about its own types.
    office.take([results(&job, 1, "[\"two\"]", 0, build("new"))]);
    assert_eq!((office.state(&job), office.failures(&job).len()), (JobState::Finished, 1));
}

#[test]
fn a_job_of_another_version_ends_when_opened() {
    let (office, job) = (Office::new(), Submitted::toy());
    let clerk = take(office.clerk_with(registry_2()), [job.opened()]);
    let outbox = clerk.commit().unwrap().1.outbox;
    assert_eq!(names(&outbox), ["opened", "stopped", "finished"]);
    let why = office.conclusion(&job).text;
    assert!(why.contains("has version 2 of the kind toy, and version 0 is needed"), "{why}");
}

#[test]
fn retry_needs_the_version_or_adopts_another() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take([job.opened(), job.done(0..2), job.failed(&[2]), job.sealed(3)]);
    let reopen = |adopt_version| message(&Reopen { job: job.id, indices: Vec::new(), adopt_version });
    let clerk = take(office.clerk_with(registry_2()), [reopen(false)]);
    let told = names(&clerk.commit().unwrap().1.outbox);
    assert!(!told.contains(&"reopened"), "reopened under a version that it does not have: {told:?}");
    let clerk = take(office.clerk_with(registry_2()), [reopen(true)]);
    let outbox = clerk.commit().unwrap().1.outbox;
    let Some(Fact::Reopened(reopened)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    assert_eq!((reopened.round, reopened.version), (Round(1), 2));
    let tasks = outbox.iter().find(|batch| batch.target == Target::Tasks).unwrap();
    let batch: Batch<'_> = decode(&tasks.rows[0].1.message).unwrap();
    assert_eq!((batch.version, batch.round, batch.first), (2, Round(1), TaskIndex(2)));
    // A result of the old version does not count any more; the new version's ends the job.
    let clerk = take(office.clerk_with(registry_2()), [results(&job, 2, "[100]", 0, None)]);
    assert_eq!(refused(&clerk.commit().unwrap().1.outbox), [(2, 1)]);
    let clerk = take(office.clerk_with(registry_2()), [results(&job, 2, "[5]", 2, None)]);
    assert_eq!(names(&clerk.commit().unwrap().1.outbox).last(), Some(&"finished"));
    assert_eq!(office.report(&job), "11", "1 by the old code, twice 5 by the new");
}

#[test]
fn form_of_a_refusal_is_a_fact() {
    let refused = Refused {
        job: Submitted::toy().id,
        round: Round(0),
        worker: app(),
        reason: "another version".into(),
        ranges: vec![(TaskIndex(3), 2)],
    };
    let message = refused.message("1".into(), "sink");
    assert!(matches!(Fact::decode(&message), Ok(Fact::Refused(read)) if read == refused));
}
