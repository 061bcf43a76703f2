//! Ends of jobs, and reopening.

use gristmill_shared::{Address, Kind, Outgoing, wire::Cancelled};

use super::*;
use crate::tests::toy_jobs::message;

/// A break ends the job, and no later outcome is folded.
#[test]
fn break_ends_job() {
    let fixture = EngineFixture::new();
    let job = SubmittedJob::new(&ToyJob { stop_at: Some(5), ..ToyJob::default() });
    let outbox =
        fixture.commit([job.opened(), job.done(8..10), job.done(3..9), job.failed(&[1]), job.done(0..2)]);
    let facts = facts(&outbox);
    let [Fact::Opened(_), Fact::Stopped(stopped), Fact::Finished(finished)] = &facts[..] else {
        panic!("{facts:?}")
    };
    assert_eq!(*stopped, Stopped { job: job.id, round: Round(0), reason: "the job has its answer".into() });
    assert_eq!(finished.conclusion, Conclusion::answer(format!("{} from 5 tasks", 8 + 9 + 3 + 4 + 5)));
    let account = fixture.account(&job);
    assert_eq!((account.done, account.duplicates, account.late, account.skipped), (5, 1, 2 + 1 + 2, 5));
    assert_eq!(fixture.verify(&job).total, None);

    // A later seal sets the number of tasks, and does not reopen the job.
    assert_eq!(names(&fixture.commit([job.sealed(20)])), ["opened", "stopped", "finished"]);
    let verification = fixture.verify(&job);
    assert!(verification.ok);
    assert_eq!((verification.total, verification.done, verification.skipped), (Some(20), 5, 15));
    assert_eq!(fixture.state(&job), JobState::Stopped);
}

#[test]
fn break_at_last_task_finishes_job() {
    let fixture = EngineFixture::new();
    let job = SubmittedJob::new(&ToyJob { stop_at: Some(3), ..ToyJob::default() }).planned(4);
    assert_eq!(names(&fixture.commit([job.opened(), job.done(0..4)])), ["opened", "finished"]);
    assert_eq!(fixture.account(&job).stopped, None);
    assert_eq!(fixture.state(&job), JobState::Finished);
}

#[test]
fn cancelled_job_has_no_answer() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy().planned(10));
    let outbox = fixture.commit([job.opened(), job.done(0..3), job.cancelled(), job.done(3..5)]);
    assert_eq!(names(&outbox), ["opened", "stopped", "finished"]);
    let account = fixture.account(&job);
    assert_eq!(account.stopped.as_deref(), Some("cancelled: lunch"));
    assert_eq!((account.done, account.skipped, account.late), (3, 7, 2));
    let conclusion = fixture.conclusion(&job);
    assert_eq!(conclusion, Conclusion::no_answer("cancelled: lunch; so far: 3 from 3 tasks"));
    assert!(fixture.verify(&job).ok);
}

#[test]
fn only_short_ends_are_events() {
    let (fixture, short, long) = (EngineFixture::new(), SubmittedJob::toy(), SubmittedJob::toy());
    let reason = "a long story ".repeat(1_000);
    let ended = message(&Cancelled { job: long.id, reason });
    let outbox = fixture.commit([
        short.opened(),
        long.opened(),
        short.done(0..3),
        short.cancelled(),
        long.done(0..3),
        ended,
    ]);
    assert_eq!(
        names(&outbox),
        ["opened", "opened", "stopped", "finished", "stopped", "finished"],
        "the journal has all of it"
    );
    let live: Vec<_> = outbox.iter().flat_map(|batch| &batch.live).collect();
    let [Outgoing { to, message: event }] = &live[..] else { panic!("{live:?}") };
    assert_eq!(*to, Address::Events(Topic::Job(Lane::default(), short.id)));
    let is_it = |row: &&(i64, Outgoing)| row.1.message == *event;
    assert_eq!(
        outbox.iter().flat_map(|batch| &batch.rows).filter(is_it).count(),
        1,
        "it is one of the facts"
    );

    // A forged end from the results queue is dead, not an event.
    let (kind, conclusion) = (Kind::new("toy").unwrap(), Conclusion::answer("42"));
    let forged = Finished {
        job: short.id,
        kind,
        round: Round(0),
        account: Account::default(),
        conclusion,
        builds: Vec::new(),
        report: None,
        report_bytes: None,
        failures: Vec::new(),
    };
    let outbox = fixture.commit([message(&forged)]);
    assert!(outbox.iter().any(|batch| batch.target == OutboxTarget::Dead), "{outbox:?}");
    assert!(
        outbox
            .iter()
            .filter(|batch| batch.target != OutboxTarget::Journal)
            .all(|batch| batch.live.is_empty())
    );
}

/// A split that fails or contradicts itself fails the job.
#[test]
fn bad_split_fails_job() {
    type Case = (fn(&SubmittedJob) -> Vec<Message>, &'static str);
    let cases: [Case; 4] = [
        (|job| vec![job.aborted()], "the split was aborted: no such file"),
        (|job| vec![job.sealed(10), job.sealed(11)], "sealed twice: with 10 tasks (of 10), then with 11"),
        (|job| vec![job.sealed(1)], "the split gave 1 tasks, but task 1 has an outcome"),
        (|job| vec![job.sealed(10), job.sealed(10)], ""),
    ];
    for (messages, why) in cases {
        let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
        fixture.commit([job.opened(), job.done(0..2)].into_iter().chain(messages(&job)));
        let stopped = fixture.account(&job).stopped.unwrap_or_default();
        assert!(stopped.contains(why) && stopped.is_empty() == why.is_empty(), "{stopped}");
        let failed = if why.is_empty() { JobState::Running } else { JobState::Failed };
        assert_eq!(fixture.state(&job), failed);
        assert!(why.is_empty() || !fixture.conclusion(&job).answered);
    }
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy().planned(3));
    fixture.commit([job.opened(), job.sealed(2)]);
    assert!(fixture.account(&job).stopped.unwrap().contains("the plan says 3 tasks, the split gave 2"));
}

#[test]
fn collect_panic_fails_only_its_job() {
    let fixture = EngineFixture::new();
    let bad = SubmittedJob::new(&ToyJob { panic_at: Some(7), ..ToyJob::default() }).planned(20);
    let good = SubmittedJob::toy();
    fixture.commit([bad.opened(), good.opened(), bad.done(0..2), good.done(0..2)]);
    // One group: both jobs fold, one of them fails, both get more.
    let group =
        [good.done(2..4), bad.done(2..5), bad.done(5..9), good.done(4..6), bad.done(9..12), good.sealed(6)];
    let outbox = fixture.commit(group.clone());
    assert_eq!(names(&outbox), ["opened", "opened", "stopped", "finished", "finished"]);
    assert_eq!(fixture.report(&good), sum(0..6));
    assert!(fixture.verify(&good).ok);
    // The failed one is as it was committed; the discarded outcomes count as late.
    assert_eq!(fixture.report(&bad), sum(0..2));
    let account = fixture.account(&bad);
    assert_eq!((account.done, account.skipped, account.late), (2, 18, 3 + 4 + 3));
    assert_eq!(account.stopped.as_deref(), Some("collect panicked: I cannot bear it"));
    assert!(!fixture.conclusion(&bad).answered);
    // The group is redelivered: only the numbers of late and repeated outcomes change.
    fixture.commit(group);
    assert_eq!((fixture.report(&good), fixture.report(&bad)), (sum(0..6), sum(0..2)));
    assert_eq!((fixture.account(&good).late, fixture.account(&bad).late), (4, 20));
}

/// A panic before the first commit leaves an empty failed job.
#[test]
fn early_panic_leaves_empty_job() {
    let (fixture, job) =
        (EngineFixture::new(), SubmittedJob::new(&ToyJob { panic_at: Some(0), ..ToyJob::default() }));
    fixture.commit([job.opened(), job.done(1..4), job.done(0..1)]);
    let account = fixture.account(&job);
    assert_eq!((account.done, account.late, fixture.state(&job)), (0, 4, JobState::Failed));
    assert_eq!(fixture.report(&job), "");
}

#[test]
fn bad_report_fails_only_its_job() {
    let (fixture, good, bad) = (EngineFixture::new(), SubmittedJob::toy(), SubmittedJob::new(&KeeperJob {}));
    let outbox = fixture.commit([
        good.opened(),
        bad.opened(),
        bad.spans(&[(0, 1, r#"["bad"]"#)], &[], 0),
        good.done(0..3),
    ]);
    assert_eq!(names(&outbox), ["opened", "opened", "stopped", "finished"]);
    assert_eq!(fixture.report(&good), sum(0..3));
    assert_eq!((fixture.account(&bad).done, fixture.account(&bad).late), (0, 1));
    assert_eq!(fixture.account(&bad).stopped.as_deref(), Some("the report panicked: spoilt"));
}

/// A kind or a spec that cannot be read ends the job at once.
#[test]
fn unreadable_job_ends_at_once() {
    let fixture = EngineFixture::new();
    let (mut unknown, mut unfit) = (SubmittedJob::toy(), SubmittedJob::toy());
    unknown.opened.kind = gristmill_shared::Kind::new("magic").unwrap();
    unfit.opened.spec = crate::tests::toy_jobs::raw("[1]");
    let outbox = fixture.commit([unknown.opened(), unfit.opened(), unknown.done(0..3)]);
    assert_eq!(names(&outbox), ["opened", "stopped", "finished", "opened", "stopped", "finished"]);
    let stopped = fixture.account(&unknown).stopped.unwrap();
    let knows = "the sink knows no jobs of kind magic (it knows: keeper, toy; hint: start ";
    assert!(stopped.starts_with(knows), "{stopped}");
    assert_eq!(fixture.account(&unknown).late, 3);
    assert!(fixture.account(&unfit).stopped.unwrap().contains("the spec [1] does not fit kind toy"));
}

/// A sink without a kind ends its jobs as the ledger has them.
#[test]
fn lost_kind_ends_running_job() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy().planned(9));
    fixture.commit([job.opened(), job.done(0..3)]);
    let engine = accept_all(fixture.engine_with(Registry::default()), [job.done(3..5)]);
    engine.commit().unwrap();
    let account = fixture.account(&job);
    assert_eq!((account.done, account.skipped, account.late), (3, 6, 2));
    assert_eq!(fixture.report(&job), sum(0..3));
}

#[test]
fn fail_fast_ends_job() {
    for (fail_fast, planned) in [(FailFast::Tasks(3), 1000), (FailFast::Percent(30), 10)] {
        let (fixture, mut job) = (EngineFixture::new(), SubmittedJob::toy().planned(planned));
        job.opened.policy.fail_fast = Some(fail_fast);
        assert_eq!(names(&fixture.commit([job.opened(), job.failed(&[1, 2])])), ["opened"]);
        fixture.commit([job.failed(&[1]), job.failed(&[3])]);
        assert_eq!(fixture.state(&job), JobState::Stopped);
        let why = format!("3 tasks failed, and the job was to end at {fail_fast} (--fail-fast)");
        assert_eq!(fixture.account(&job).stopped, Some(why));
    }
}

#[test]
fn reopen_sends_failed_tasks() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.opened(), job.done(0..4), job.failed(&[4, 5, 7, 9]), job.done(6..7), job.done(8..9)]);
    fixture.commit([job.reopen(&[])]);
    assert_eq!(fixture.state(&job), JobState::Running, "a running job is not reopened");
    fixture.commit([job.sealed(10)]);
    let before = fixture.account(&job);
    assert_eq!((before.done, before.failed), (6, 4));

    let outbox = fixture.commit([job.reopen(&[4, 5, 9, 1])]);
    assert_eq!(names(&outbox), ["opened", "finished", "reopened"]);
    let tasks = outbox.iter().find(|batch| batch.target == OutboxTarget::Tasks).unwrap();
    let batches: Vec<_> = tasks.rows.iter().map(|(_, row)| &row.message).collect();
    let sent = |message: &Message| {
        let batch: Batch<'_> = decode(message).unwrap();
        (batch.first.0, batch.count, batch.round.0, batch.tasks.get().to_owned())
    };
    assert_eq!(sent(batches[0]), (4, 2, 1, r#"["payload","payload"]"#.into()));
    assert_eq!(sent(batches[1]), (9, 1, 1, r#"["payload"]"#.into()));
    assert_eq!(fixture.verify(&job).gaps, [4..6, 9..10]);

    // A failure of the old round does not count in the new one; an output does.
    fixture.commit([job.failed(&[4]), job.done(5..6)]);
    assert_eq!(fixture.verify(&job).gaps, [4..5, 9..10]);
    let outbox = fixture.commit([job.spans(&[(4, 1, "[4]")], &[9], 1)]);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("it is not finished") };
    assert_eq!((finished.round.0, finished.account.done, finished.account.failed), (1, 8, 2));
    assert!(fixture.verify(&job).ok);
    assert_eq!(fixture.report(&job), (sum(0..7).parse::<u64>().unwrap() + 8).to_string());
}

/// A job that ended without a seal ends again without one.
#[test]
fn unsealed_job_ends_again() {
    let fixture = EngineFixture::new();
    let job = SubmittedJob::new(&ToyJob { stop_at: Some(1), ..ToyJob::default() }).planned(2);
    fixture.commit([job.opened(), job.failed(&[0]), job.done(1..2)]);
    assert_eq!(fixture.state(&job), JobState::Finished);
    fixture.commit([job.reopen(&[])]);
    assert_eq!(fixture.state(&job), JobState::Running);
    let outbox = fixture.commit([job.spans(&[(0, 1, "[0]")], &[], 1)]);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("it is not finished") };
    assert_eq!((finished.round.0, finished.account.done, finished.account.failed), (1, 2, 0));
    assert!(fixture.verify(&job).ok);
}

/// Pruning a job while it is reopened is an error, and nothing is written.
#[test]
fn prune_during_reopen_is_error() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.opened(), job.failed(&[0]), job.sealed(1)]);
    let engine = accept_all(fixture.engine(), [job.reopen(&[])]);
    fixture.reader().prune(PruneRule { older_than: None, keep: Some(0) }).unwrap();
    let error = gristmill_shared::error_chain(&engine.commit().unwrap_err());
    assert!(error.contains(&format!("job {} no longer exists (hint: `sink prune`", job.id)), "{error}");
    let left = fixture.commit([job.reopen(&[])]);
    assert_eq!(names(&left), ["opened", "finished"], "nor is it reopened when that is asked again");
    assert!(left.iter().all(|batch| batch.target != OutboxTarget::Tasks));
}
