//! How jobs end, and begin again.

use gristmill_shared::{Address, Kind, Outgoing, wire::Cancelled};

use super::*;
use crate::{PruneRule, prune, tests::toy_jobs::message};

#[test]
fn a_break_ends_the_job_and_nothing_is_folded_after_it() {
    let office = Office::new();
    let job = Submitted::new(&Toy { stop_at: Some(5), ..Toy::default() });
    let outbox =
        office.take([job.opened(), job.done(8..10), job.done(3..9), job.failed(&[1]), job.done(0..2)]);
    let facts = facts(&outbox);
    let [Fact::Opened(_), Fact::Stopped(stopped), Fact::Finished(finished)] = &facts[..] else {
        panic!("{facts:?}")
    };
    assert_eq!(*stopped, Stopped { job: job.id, round: Round(0), reason: "the job has its answer".into() });
    assert_eq!(finished.conclusion, Conclusion::answer(format!("{} from 5 tasks", 8 + 9 + 3 + 4 + 5)));
    let account = office.account(&job);
    assert_eq!((account.done, account.duplicates, account.late, account.skipped), (5, 1, 2 + 1 + 2, 5));
    assert_eq!(office.verify(&job).total, None);

    // A later seal tells how many there were, and does not open the job again.
    assert_eq!(names(&office.take([job.sealed(20)])), ["opened", "stopped", "finished"]);
    let verification = office.verify(&job);
    assert!(verification.ok);
    assert_eq!((verification.total, verification.done, verification.skipped), (Some(20), 5, 15));
    assert_eq!(office.state(&job), JobState::Stopped);
}

#[test]
fn a_break_at_the_last_task_stops_nothing() {
    let office = Office::new();
    let job = Submitted::new(&Toy { stop_at: Some(3), ..Toy::default() }).planned(4);
    assert_eq!(names(&office.take([job.opened(), job.done(0..4)])), ["opened", "finished"]);
    assert_eq!(office.account(&job).stopped, None);
    assert_eq!(office.state(&job), JobState::Finished);
}

#[test]
fn a_cancelled_job_gives_no_answer() {
    let (office, job) = (Office::new(), Submitted::toy().planned(10));
    let outbox = office.take([job.opened(), job.done(0..3), job.cancelled(), job.done(3..5)]);
    assert_eq!(names(&outbox), ["opened", "stopped", "finished"]);
    let account = office.account(&job);
    assert_eq!(account.stopped.as_deref(), Some("cancelled: lunch"));
    assert_eq!((account.done, account.skipped, account.late), (3, 7, 2));
    let conclusion = office.conclusion(&job);
    assert_eq!(conclusion, Conclusion::no_answer("cancelled: lunch; so far: 3 from 3 tasks"));
    assert!(office.verify(&job).ok);
}

#[test]
fn only_an_end_is_told_live_and_only_if_it_is_short() {
    let (office, short, long) = (Office::new(), Submitted::toy(), Submitted::toy());
    let reason = "a long story ".repeat(1_000);
    let ended = message(&Cancelled { job: long.id, reason });
    let outbox = office.take([
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

    // Nor is what somebody else calls an end, which goes to the dead.
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
    let outbox = office.take([message(&forged)]);
    assert!(outbox.iter().any(|batch| batch.target == Target::Dead), "{outbox:?}");
    assert!(outbox.iter().filter(|batch| batch.target != Target::Journal).all(|batch| batch.live.is_empty()));
}

#[test]
fn a_split_that_fails_or_contradicts_itself_fails_the_job() {
    type Case = (fn(&Submitted) -> Vec<Message>, &'static str);
    let cases: [Case; 4] = [
        (|job| vec![job.aborted()], "the split was aborted: no such file"),
        (|job| vec![job.sealed(10), job.sealed(11)], "sealed twice: with 10 tasks (of 10), then with 11"),
        (|job| vec![job.sealed(1)], "the split gave 1 tasks, but task 1 has an outcome"),
        (|job| vec![job.sealed(10), job.sealed(10)], ""),
    ];
    for (messages, why) in cases {
        let (office, job) = (Office::new(), Submitted::toy());
        office.take([job.opened(), job.done(0..2)].into_iter().chain(messages(&job)));
        let stopped = office.account(&job).stopped.unwrap_or_default();
        assert!(stopped.contains(why) && stopped.is_empty() == why.is_empty(), "{stopped}");
        let failed = if why.is_empty() { JobState::Running } else { JobState::Failed };
        assert_eq!(office.state(&job), failed);
        assert!(why.is_empty() || !office.conclusion(&job).answered);
    }
    let (office, job) = (Office::new(), Submitted::toy().planned(3));
    office.take([job.opened(), job.sealed(2)]);
    assert!(office.account(&job).stopped.unwrap().contains("the plan says 3 tasks, the split gave 2"));
}

#[test]
fn a_panic_in_collect_ends_its_job_and_costs_no_other_anything() {
    let office = Office::new();
    let bad = Submitted::new(&Toy { panic_at: Some(7), ..Toy::default() }).planned(20);
    let good = Submitted::toy();
    office.take([bad.opened(), good.opened(), bad.done(0..2), good.done(0..2)]);
    // One group: both jobs fold, one of them breaks, both get more.
    let group =
        [good.done(2..4), bad.done(2..5), bad.done(5..9), good.done(4..6), bad.done(9..12), good.sealed(6)];
    let outbox = office.take(group.clone());
    assert_eq!(names(&outbox), ["opened", "opened", "stopped", "finished", "finished"]);
    assert_eq!(office.report(&good), sum(0..6));
    assert!(office.verify(&good).ok);
    // The bad one is as it was committed; what was lost by that counts as late.
    assert_eq!(office.report(&bad), sum(0..2));
    let account = office.account(&bad);
    assert_eq!((account.done, account.skipped, account.late), (2, 18, 3 + 4 + 3));
    assert_eq!(account.stopped.as_deref(), Some("collect panicked: I cannot bear it"));
    assert!(!office.conclusion(&bad).answered);
    // The group comes again: nothing changes but the number of late and double ones.
    office.take(group);
    assert_eq!((office.report(&good), office.report(&bad)), (sum(0..6), sum(0..2)));
    assert_eq!((office.account(&good).late, office.account(&bad).late), (4, 20));
}

#[test]
fn a_panic_before_the_first_commit_leaves_an_empty_failed_job() {
    let (office, job) = (Office::new(), Submitted::new(&Toy { panic_at: Some(0), ..Toy::default() }));
    office.take([job.opened(), job.done(1..4), job.done(0..1)]);
    let account = office.account(&job);
    assert_eq!((account.done, account.late, office.state(&job)), (0, 4, JobState::Failed));
    assert_eq!(office.report(&job), "");
}

#[test]
fn a_report_that_does_not_encode_fails_its_job_only() {
    let (office, good, bad) = (Office::new(), Submitted::toy(), Submitted::new(&Keeper {}));
    let outbox = office.take([
        good.opened(),
        bad.opened(),
        bad.spans(&[(0, 1, r#"["bad"]"#)], &[], 0),
        good.done(0..3),
    ]);
    assert_eq!(names(&outbox), ["opened", "opened", "stopped", "finished"]);
    assert_eq!(office.report(&good), sum(0..3));
    assert_eq!((office.account(&bad).done, office.account(&bad).late), (0, 1));
    assert_eq!(office.account(&bad).stopped.as_deref(), Some("the report panicked: spoilt"));
}

#[test]
fn a_kind_or_a_spec_that_cannot_be_read_ends_the_job_at_once() {
    let office = Office::new();
    let (mut unknown, mut unfit) = (Submitted::toy(), Submitted::toy());
    unknown.opened.kind = gristmill_shared::Kind::new("magic").unwrap();
    unfit.opened.spec = crate::tests::toy_jobs::raw("[1]");
    let outbox = office.take([unknown.opened(), unfit.opened(), unknown.done(0..3)]);
    assert_eq!(names(&outbox), ["opened", "stopped", "finished", "opened", "stopped", "finished"]);
    let stopped = office.account(&unknown).stopped.unwrap();
    let knows = "the sink knows no jobs of kind magic (it knows: keeper, toy; hint: start ";
    assert!(stopped.starts_with(knows), "{stopped}");
    assert_eq!(office.account(&unknown).late, 3);
    assert!(office.account(&unfit).stopped.unwrap().contains("the spec [1] does not fit kind toy"));
}

#[test]
fn a_sink_that_forgot_a_kind_ends_its_jobs_as_the_ledger_has_them() {
    let (office, job) = (Office::new(), Submitted::toy().planned(9));
    office.take([job.opened(), job.done(0..3)]);
    let clerk = take(office.clerk_with(Registry::default()), [job.done(3..5)]);
    clerk.commit().unwrap();
    let account = office.account(&job);
    assert_eq!((account.done, account.skipped, account.late), (3, 6, 2));
    assert_eq!(office.report(&job), sum(0..3));
}

#[test]
fn too_many_failures_end_a_job_that_is_to_fail_fast() {
    for (fail_fast, planned) in [(FailFast::Tasks(3), 1000), (FailFast::Percent(30), 10)] {
        let (office, mut job) = (Office::new(), Submitted::toy().planned(planned));
        job.opened.policy.fail_fast = Some(fail_fast);
        assert_eq!(names(&office.take([job.opened(), job.failed(&[1, 2])])), ["opened"]);
        office.take([job.failed(&[1]), job.failed(&[3])]);
        assert_eq!(office.state(&job), JobState::Stopped);
        let why = format!("3 tasks failed, and the job was to end at {fail_fast} (--fail-fast)");
        assert_eq!(office.account(&job).stopped, Some(why));
    }
}

#[test]
fn failed_tasks_are_sent_again_in_a_new_round() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take([job.opened(), job.done(0..4), job.failed(&[4, 5, 7, 9]), job.done(6..7), job.done(8..9)]);
    office.take([job.reopen(&[])]);
    assert_eq!(office.state(&job), JobState::Running, "a running job is not reopened");
    office.take([job.sealed(10)]);
    let before = office.account(&job);
    assert_eq!((before.done, before.failed), (6, 4));

    let outbox = office.take([job.reopen(&[4, 5, 9, 1])]);
    assert_eq!(names(&outbox), ["opened", "finished", "reopened"]);
    let tasks = outbox.iter().find(|batch| batch.target == Target::Tasks).unwrap();
    let batches: Vec<_> = tasks.rows.iter().map(|(_, row)| &row.message).collect();
    let sent = |message: &Message| {
        let batch: Batch<'_> = decode(message).unwrap();
        (batch.first.0, batch.count, batch.round.0, batch.tasks.get().to_owned())
    };
    assert_eq!(sent(batches[0]), (4, 2, 1, r#"["payload","payload"]"#.into()));
    assert_eq!(sent(batches[1]), (9, 1, 1, r#"["payload"]"#.into()));
    assert_eq!(office.verify(&job).gaps, [4..6, 9..10]);

    // A failure of the old round says nothing about the new one; an output is an output.
    office.take([job.failed(&[4]), job.done(5..6)]);
    assert_eq!(office.verify(&job).gaps, [4..5, 9..10]);
    let outbox = office.take([job.spans(&[(4, 1, "[4]")], &[9], 1)]);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("it is not finished") };
    assert_eq!((finished.round.0, finished.account.done, finished.account.failed), (1, 8, 2));
    assert!(office.verify(&job).ok);
    assert_eq!(office.report(&job), (sum(0..7).parse::<u64>().unwrap() + 8).to_string());
}

#[test]
fn a_job_that_ended_without_a_seal_ends_again_without_one() {
    let office = Office::new();
    let job = Submitted::new(&Toy { stop_at: Some(1), ..Toy::default() }).planned(2);
    office.take([job.opened(), job.failed(&[0]), job.done(1..2)]);
    assert_eq!(office.state(&job), JobState::Finished);
    office.take([job.reopen(&[])]);
    assert_eq!(office.state(&job), JobState::Running);
    let outbox = office.take([job.spans(&[(0, 1, "[0]")], &[], 1)]);
    let Some(Fact::Finished(finished)) = facts(&outbox).pop() else { panic!("it is not finished") };
    assert_eq!((finished.round.0, finished.account.done, finished.account.failed), (1, 2, 0));
    assert!(office.verify(&job).ok);
}

#[test]
fn a_job_that_is_forgotten_while_it_is_reopened_is_an_error_and_nothing_is_written() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take([job.opened(), job.failed(&[0]), job.sealed(1)]);
    let clerk = take(office.clerk(), [job.reopen(&[])]);
    prune(&office.path, PruneRule { older_than: None, keep: Some(0) }).unwrap();
    let error = gristmill_shared::error_chain(&clerk.commit().unwrap_err());
    assert!(error.contains(&format!("job {} is not there any more (hint: `sink prune`", job.id)), "{error}");
    let left = office.take([job.reopen(&[])]);
    assert_eq!(names(&left), ["opened", "finished"], "nor is it reopened when that is asked again");
    assert!(left.iter().all(|batch| batch.target != Target::Tasks));
}
