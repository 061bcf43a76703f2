//! Outcomes of other code than the job's: they do not count, and their tasks are published to be
//! sent again.

use gristmill_ledger::MissingTasks;
use gristmill_shared::{
    BuildId, Job, JobError, Keep, Policy, TaskContext, TaskError, TaskIndex,
    wire::{Opened, OutputRun, Refused, Reopen, Results, WireMessage},
};
use serde::{Deserialize, Serialize};

use super::*;
use crate::tests::toy_jobs::{message, raw};

/// The toy job after a change: it adds twice each output.
#[derive(Serialize, Deserialize, Default)]
struct ToyJobV2 {
    stop_at: Option<u64>,
}

impl Job for ToyJobV2 {
    const KIND: &'static str = ToyJob::KIND;
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

fn registry_v2() -> Registry {
    let mut registry = Registry::default();
    registry.register::<ToyJobV2>().unwrap();
    registry
}

fn build(name: &str) -> Option<BuildId> {
    Some(BuildId::new(name).unwrap())
}

fn submitted(by: Option<BuildId>, same_build: bool) -> SubmittedJob {
    let toy = SubmittedJob::toy();
    let policy = Policy { same_build, ..Policy::default() };
    SubmittedJob { opened: Opened { build: by, policy, ..toy.opened }, ..toy }
}

/// Results of one span, from a worker with this code.
fn results(job: &SubmittedJob, first: u64, outputs: &str, version: u32, build: Option<BuildId>) -> Message {
    let outputs = raw(outputs);
    let all: Vec<serde_json::Value> = serde_json::from_str(outputs.get()).unwrap();
    let span = OutputRun { first: TaskIndex(first), count: all.len() as u32, outputs: &outputs, tasks: None };
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

/// The number of the tasks, and their ranges as pairs of start and end.
fn tasks_in(tasks: &MissingTasks) -> (u64, Vec<(u64, u64)>) {
    (tasks.tasks, tasks.ranges.iter().map(|range| (range.start, range.end)).collect())
}

#[test]
fn other_version_is_refused() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let outbox = fixture.commit([
        job.opened(),
        job.done(0..3),
        results(&job, 1, "[100,100,100,100]", 1, None),
        job.sealed(6),
    ]);
    assert_eq!(refused(&outbox), [(3, 2)], "only tasks without an outcome");
    let view = fixture.reader().job(job.id).unwrap().unwrap();
    assert_eq!(tasks_in(&view.refused), (2, vec![(3, 5)]));
    assert_eq!(view.summary.account.done, 3);
    // The tasks are run again, by a worker of the right version.
    let outbox = fixture.commit([job.done(3..6)]);
    assert_eq!(names(&outbox).last(), Some(&"finished"));
    assert_eq!(fixture.report(&job), sum(0..6), "nothing of the other version is in the report");
    let view = fixture.reader().job(job.id).unwrap().unwrap();
    assert_eq!(view.refused.tasks, 0);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    let shares: Vec<_> =
        finished.builds.iter().map(|share| (share.version, share.counted, share.refused)).collect();
    assert_eq!(shares, [(0, 6, 0), (1, 0, 2)]);
    assert_eq!(fixture.verify(&job).builds, finished.builds);
}

#[test]
fn refused_tasks_survive_restart() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.opened(), results(&job, 4, "[1,1]", 7, build("old"))]);
    let outbox = fixture.commit([results(&job, 5, "[1,1]", 7, build("old"))]);
    assert_eq!(refused(&outbox), [(4, 2), (5, 2)], "refused once more, so sent once more");
    let view = fixture.reader().job(job.id).unwrap().unwrap();
    assert_eq!(tasks_in(&view.refused), (3, vec![(4, 7)]));
    assert_eq!(view.builds[0].refused, 4);
}

#[test]
fn refused_span_needs_its_outputs() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let outputs = raw("[1]");
    let span = OutputRun { first: TaskIndex(0), count: u32::MAX, outputs: &outputs, tasks: None };
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
    let outbox = fixture.commit([job.opened(), lie]);
    assert_eq!(refused(&outbox), []);
    assert!(outbox.iter().any(|batch| batch.target == OutboxTarget::Dead), "{outbox:?}");
}

#[test]
fn same_build_refuses_others() {
    let (fixture, job) = (EngineFixture::new(), submitted(build("new"), true));
    let outbox = fixture.commit([
        job.opened(),
        results(&job, 0, "[1]", 0, build("new")),
        results(&job, 1, "[1]", 0, build("old")),
        results(&job, 2, "[1]", 0, None),
    ]);
    assert_eq!(refused(&outbox), [(1, 2)]);
    assert_eq!(fixture.report(&job), "1");
}

#[test]
fn other_build_counts_and_is_named() {
    let (fixture, job) = (EngineFixture::new(), submitted(build("new"), false));
    let outbox = fixture.commit([
        job.opened(),
        results(&job, 0, "[1,2]", 0, build("new")),
        results(&job, 2, "[3]", 0, build("old")),
        job.sealed(3),
    ]);
    assert_eq!(fixture.report(&job), "6");
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    let shares: Vec<_> = finished.builds.iter().map(|share| (share.build.clone(), share.counted)).collect();
    assert_eq!(shares, [(build("new"), 2), (build("old"), 1)]);
    // A single build, the submitter's, is not listed.
    let plain = submitted(build("new"), false);
    let outbox =
        fixture.commit([plain.opened(), results(&plain, 0, "[1]", 0, build("new")), plain.sealed(1)]);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    assert_eq!(finished.builds, []);
}

#[test]
fn undecodable_foreign_output_refused() {
    let (fixture, job) = (EngineFixture::new(), submitted(build("new"), false));
    let outbox =
        fixture.commit([job.opened(), results(&job, 0, "[1,\"two\",3]", 0, build("old")), job.sealed(3)]);
    assert_eq!(refused(&outbox), [(1, 1)]);
    assert_eq!((fixture.state(&job), fixture.failures(&job).len()), (JobState::Running, 0));
    // The submitter's own build is authoritative about its own types.
    fixture.commit([results(&job, 1, "[\"two\"]", 0, build("new"))]);
    assert_eq!((fixture.state(&job), fixture.failures(&job).len()), (JobState::Finished, 1));
}

#[test]
fn other_version_ends_when_opened() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let engine = accept_all(fixture.engine_with(registry_v2()), [job.opened()]);
    let outbox = engine.commit().unwrap().1.outbox;
    assert_eq!(names(&outbox), ["opened", "stopped", "finished"]);
    let why = fixture.conclusion(&job).text;
    assert!(why.contains("has version 2 of the kind toy, and version 0 is needed"), "{why}");
}

#[test]
fn retry_needs_or_adopts_version() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.opened(), job.done(0..2), job.failed(&[2]), job.sealed(3)]);
    let reopen = |adopt_version| message(&Reopen { job: job.id, indices: Vec::new(), adopt_version });
    let engine = accept_all(fixture.engine_with(registry_v2()), [reopen(false)]);
    let told = names(&engine.commit().unwrap().1.outbox);
    assert!(!told.contains(&"reopened"), "reopened under a version that it does not have: {told:?}");
    let engine = accept_all(fixture.engine_with(registry_v2()), [reopen(true)]);
    let outbox = engine.commit().unwrap().1.outbox;
    let Some(Fact::Reopened(reopened)) = facts(&outbox).pop() else { panic!("{outbox:?}") };
    assert_eq!((reopened.round, reopened.version), (Round(1), 2));
    let tasks = outbox.iter().find(|batch| batch.target == OutboxTarget::Tasks).unwrap();
    let batch: Batch<'_> = decode(&tasks.rows[0].1.message).unwrap();
    assert_eq!((batch.version, batch.round, batch.first), (2, Round(1), TaskIndex(2)));
    // A result of the old version no longer counts; the new version's ends the job.
    let engine = accept_all(fixture.engine_with(registry_v2()), [results(&job, 2, "[100]", 0, None)]);
    assert_eq!(refused(&engine.commit().unwrap().1.outbox), [(2, 1)]);
    let engine = accept_all(fixture.engine_with(registry_v2()), [results(&job, 2, "[5]", 2, None)]);
    assert_eq!(names(&engine.commit().unwrap().1.outbox).last(), Some(&"finished"));
    assert_eq!(fixture.report(&job), "11", "1 by the old code, twice 5 by the new");
}

#[test]
fn refusal_round_trips_as_fact() {
    let refused = Refused {
        job: SubmittedJob::toy().id,
        round: Round(0),
        worker: app(),
        reason: "another version".into(),
        ranges: vec![(TaskIndex(3), 2)],
    };
    let message = refused.message("1".into(), "sink");
    assert!(matches!(Fact::decode(&message), Ok(Fact::Refused(read)) if read == refused));
}
