//! The clerk with toy jobs, on ledgers in files: what is counted, whatever happens when.

use std::{ops::Range, path::PathBuf};

use gristmill_shared::wire::{Fact, Finished, Stopped};
use gristmill_shared::{Account, Conclusion, FailFast, Message, Round};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    JobState, LedgerPlace, LedgerReader, Verification,
    ledger::parked,
    toy::{Keeper, Submitted, Toy, app, delivery, garbage, registry},
};

/// A ledger in a file, and clerks who work with it one after another.
struct Office {
    _dir: TempDir,
    path: PathBuf,
}

impl Office {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Self { _dir: dir, path }
    }

    fn clerk(&self) -> Clerk {
        self.clerk_with(registry())
    }

    fn clerk_with(&self, registry: Registry) -> Clerk {
        let ledger = Ledger::open(LedgerPlace::File(self.path.clone())).unwrap();
        Clerk::new(ledger, registry, Lane::default(), app())
    }

    fn reader(&self) -> LedgerReader {
        LedgerReader::open(&self.path).unwrap()
    }

    /// Takes in messages in one group.
    fn take(&self, messages: impl IntoIterator<Item = Message>) -> Vec<OutboxBatch> {
        let clerk = take(self.clerk(), messages);
        clerk.commit().unwrap().1.outbox
    }

    fn verify(&self, job: &Submitted) -> Verification {
        let verification = self.reader().verify(job.id).unwrap();
        assert_eq!(verification.problems, Vec::<String>::new());
        verification
    }

    fn account(&self, job: &Submitted) -> Account {
        self.verify(job);
        self.reader().job(job.id).unwrap().unwrap().summary.account
    }

    fn report(&self, job: &Submitted) -> String {
        let report = self.reader().job(job.id).unwrap().unwrap().report;
        report.map_or_else(String::new, |report| report.get().to_owned())
    }

    fn conclusion(&self, job: &Submitted) -> Conclusion {
        self.reader().job(job.id).unwrap().unwrap().conclusion.unwrap()
    }

    fn state(&self, job: &Submitted) -> JobState {
        self.reader().job(job.id).unwrap().unwrap().summary.state
    }
}

fn take(mut clerk: Clerk, messages: impl IntoIterator<Item = Message>) -> Clerk {
    for message in messages {
        clerk.take(delivery(message)).unwrap();
    }
    clerk
}

fn facts(outbox: &[OutboxBatch]) -> Vec<Fact> {
    let journal = outbox.iter().filter(|batch| batch.target == Target::Journal);
    journal.flat_map(|batch| &batch.rows).map(|(_, row)| Fact::decode(&row.message).unwrap()).collect()
}

fn names(outbox: &[OutboxBatch]) -> Vec<&'static str> {
    let name = |fact: Fact| match fact {
        Fact::Opened(_) => "opened",
        Fact::Finished(_) => "finished",
        Fact::Stopped(_) => "stopped",
        Fact::Reopened(_) => "reopened",
        Fact::Missing(_) => "missing",
        Fact::Serving(_) => "serving",
    };
    facts(outbox).into_iter().map(name).collect()
}

fn sum(range: Range<u64>) -> String {
    range.sum::<u64>().to_string()
}

#[test]
fn a_job_is_finished_when_every_task_has_an_outcome() {
    let (office, job) = (Office::new(), Submitted::toy());
    let outbox = office.take([job.opened(), job.done(0..4), job.failed(&[4])]);
    assert_eq!(names(&outbox), ["opened"]);
    assert_eq!(office.state(&job), JobState::Running);
    let half = office.verify(&job);
    assert!(!half.ok && half.total.is_none() && half.reached == 5);
    assert!(half.to_string().starts_with("split not finished at 5"), "{half}");

    let mut clerk = take(office.clerk(), [job.sealed(10), job.done(5..9)]);
    let mid = clerk.save().map(|()| office.verify(&job)).unwrap();
    assert_eq!((&mid.gaps[0], mid.gaps.len(), mid.missing, mid.ok), (&(9..10), 1, 1, false));
    let (clerk, committed) = take(clerk, [job.done(9..10)]).commit().unwrap();
    let [Fact::Opened(_), Fact::Finished(Finished { account, conclusion, .. })] =
        &facts(&committed.outbox)[..]
    else {
        panic!("{:?}", committed.outbox)
    };
    let expected = Account { total: Some(10), done: 9, failed: 1, ..Account::default() };
    assert_eq!(*account, expected);
    assert_eq!(conclusion.text, format!("{} from 9 tasks", 45 - 4));
    assert!(clerk.jobs.is_empty(), "a finished job stays in memory");
    assert!(office.verify(&job).ok);
    assert_eq!(office.account(&job), expected);
    assert_eq!(office.conclusion(&job), *conclusion);
    let failure = office.reader().failures(job.id).unwrap().remove(0);
    assert_eq!((failure.index.0, failure.attempts, &*failure.reason), (4, 5, "task 4 is bad"));
    assert_eq!(failure.task.unwrap().get(), "\"payload\"");
}

#[test]
fn an_output_overrides_a_failure_and_never_the_other_way_round() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take([job.opened(), job.failed(&[0, 1, 2]), job.done(1..2)]);
    office.take([job.done(2..4), job.failed(&[1, 3]), job.failed(&[0])]);
    let account = office.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (3, 1, 3));
    office.take([job.sealed(4), job.done(0..1)]);
    let account = office.account(&job);
    assert_eq!((account.done, account.failed, account.late), (3, 1, 1), "the job was finished");
    assert_eq!(office.report(&job), sum(1..4));
}

#[test]
fn what_was_not_committed_comes_again_and_counts_once() {
    let (office, job) = (Office::new(), Submitted::toy());
    let second = [job.done(2..6), job.failed(&[6])];
    office.take([job.opened(), job.done(0..3)]);
    drop(take(office.clerk(), second.clone())); // killed between folding and committing
    assert_eq!(office.report(&job), sum(0..3));
    let unacknowledged = take(office.clerk(), second.clone()).commit().unwrap();
    drop(unacknowledged); // killed between committing and acknowledging
    office.take(second);
    let account = office.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (6, 1, 1 + 5));
    assert_eq!(office.report(&job), sum(0..6));
    office.take([job.sealed(7)]);
    assert!(office.verify(&job).ok);
}

#[test]
fn a_commit_that_fails_leaves_the_ledger_as_it_was() {
    let (office, job) = (Office::new(), Submitted::toy());
    let outputs = vec!["\"a long output\""; 1000].join(",");
    let keeper = Submitted::new(&Keeper {});
    office.take([job.opened(), job.done(0..3), keeper.opened()]);
    let clerk = office.clerk();
    let full = clerk.ledger.read("", |connection| {
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
    });
    full.unwrap();
    let large = keeper.spans(&[(0, 1000, &format!("[{outputs}]"))], &[], 0);
    let error = take(clerk, [job.done(3..9), large.clone()]).commit().unwrap_err();
    assert!(matches!(error, SinkError::Ledger { .. }), "{error}");
    assert!(gristmill_shared::error_chain(&error).contains("full"), "{error}");
    assert_eq!(office.report(&job), sum(0..3));
    office.take([job.done(3..9), large]);
    assert_eq!(office.report(&job), sum(0..9));
    assert_eq!(office.account(&job).duplicates, 0);
    assert_eq!(office.account(&keeper).done, 1000);
}

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
    assert_eq!(*stopped, Stopped { job: job.id, round: Round(0), why: "the job has its answer".into() });
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
    unfit.opened.spec = crate::toy::raw("[1]");
    let outbox = office.take([unknown.opened(), unfit.opened(), unknown.done(0..3)]);
    assert_eq!(names(&outbox), ["opened", "stopped", "finished", "opened", "stopped", "finished"]);
    let stopped = office.account(&unknown).stopped.unwrap();
    assert_eq!(stopped, "the sink knows no jobs of kind magic (it knows: keeper, toy)");
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
fn an_output_that_is_none_is_a_failure_of_its_task() {
    let (office, job) = (Office::new(), Submitted::toy());
    let results = job.spans(&[(0, 3, r#"[0,"one",2]"#)], &[], 0);
    office.take([job.opened(), results.clone(), results, job.sealed(3)]);
    let account = office.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (2, 1, 3));
    assert!(
        office.reader().failures(job.id).unwrap()[0]
            .reason
            .contains("does not decode as an output of kind toy")
    );
    assert!(office.verify(&job).ok);
}

#[test]
fn what_is_malformed_goes_to_the_dead_queue_with_the_reason() {
    let (office, job) = (Office::new(), Submitted::toy().planned(5));
    let wrong_count = job.spans(&[(0, 1, "[0]"), (1, 3, "[1]")], &[], 0);
    let beyond = job.spans(&[(2, 1, "[2]"), (4, 2, "[4,5]")], &[], 0);
    let endless = job.spans(&[(u64::MAX, 2, "[0,0]")], &[], 0);
    let outbox = office.take([job.opened(), garbage(), wrong_count, beyond, endless]);
    let dead = outbox.iter().find(|batch| batch.target == Target::Dead).unwrap();
    let expected = [
        "no message for a sink has the type \"spam.v1\"",
        "the span says it has 3 outputs, but has 1",
        "it has outcomes for 2 tasks from index 4 on, but the job has 5 tasks",
        "it has outcomes for 2 tasks from index 18446744073709551615 on",
    ];
    assert_eq!(dead.rows.len(), expected.len());
    for ((_, row), reason) in dead.rows.iter().zip(expected) {
        assert_eq!(row.to, gristmill_shared::Address::Queue(QueueRole::Dead.of(&Lane::default())));
        assert_eq!(row.message.headers.origin.as_deref(), Some("gristmill.default.results"));
        let found = row.message.headers.reason.as_deref().unwrap();
        assert!(found.contains(reason), "{found}");
    }
    assert_eq!(dead.rows[0].1.message.body, garbage().body);
    assert_eq!(dead.rows[0].1.message.id, garbage().id);
    assert_eq!(office.account(&job).done, 1, "the span before the malformed one counts, and nothing else");
}

#[test]
fn dead_messages_are_recorded_and_dead_batches_become_failures() {
    let (office, job) = (Office::new(), Submitted::toy());
    let mut clerk = take(office.clerk(), [job.opened(), job.done(0..2)]);
    let mut batch = job.batch(1, 3);
    batch.headers.reason = Some("the spec does not fit".into());
    let mut torn = job.batch(5, 2);
    torn.body = String::from_utf8(torn.body.to_vec()).unwrap().replace("[5,6]", "[5]").into();
    for message in [garbage(), batch, torn] {
        clerk.take_dead(delivery(message)).unwrap();
    }
    clerk.commit().unwrap();
    let dead = office.reader().dead().unwrap();
    let reasons: Vec<_> = dead.messages.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(reasons[0], "the batch says it has 2 tasks, but has 1");
    assert!(reasons[1].contains("spam.v1"), "{reasons:?}");
    assert_eq!((dead.messages[1].bytes, &*dead.messages[1].body), (10, "\u{fffd} not ours"));
    let failures = office.reader().failures(job.id).unwrap();
    let failures: Vec<_> =
        failures.iter().map(|row| (row.index.0, &*row.reason, row.task.as_ref().unwrap().get())).collect();
    assert_eq!(failures, [(2, "the spec does not fit", "2"), (3, "the spec does not fit", "3")]);
    assert_eq!(office.account(&job).duplicates, 1);
}

#[test]
fn the_record_of_dead_messages_is_bounded() {
    let office = Office::new();
    let mut clerk = office.clerk();
    for _ in 0..crate::ledger::dead::DEAD_MAX_MESSAGES + 3 {
        clerk.take_dead(delivery(garbage())).unwrap();
    }
    clerk.commit().unwrap();
    let dead = office.reader().dead().unwrap();
    assert_eq!((dead.messages.len() as u64, dead.dropped), (crate::ledger::dead::DEAD_MAX_MESSAGES, 3));
}

#[test]
fn what_comes_before_its_job_is_parked_and_then_folded() {
    let (office, job, other) = (Office::new(), Submitted::toy(), Submitted::toy());
    office.take([job.done(2..5), other.done(0..1), job.sealed(6)]);
    let mut clerk = office.clerk();
    clerk.take_dead(delivery(job.batch(5, 1))).unwrap();
    let parked = office.reader().parked().unwrap();
    assert_eq!(
        parked.jobs.iter().map(|row| (row.job, row.messages)).collect::<Vec<_>>(),
        [(job.id, 2), (other.id, 1)]
    );
    take(clerk, [job.opened(), job.done(0..2)]).commit().unwrap();
    assert!(office.verify(&job).ok);
    assert_eq!((office.report(&job), office.account(&job).failed), (sum(0..5), 1));
    let left = office.reader().parked().unwrap();
    assert_eq!((left.jobs.len(), left.jobs[0].job, left.dropped), (1, other.id, 0));
}

#[test]
fn parking_is_bounded_and_says_what_it_dropped() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take((0..parked::PARKED_MAX_MESSAGES + 2).map(|index| job.done(index..index + 1)));
    let parked = office.reader().parked().unwrap();
    assert_eq!((parked.jobs[0].messages, parked.dropped), (parked::PARKED_MAX_MESSAGES, 2));
    office.take([job.opened()]);
    let verification = office.reader().verify(job.id).unwrap();
    assert_eq!(
        (verification.done, &verification.gaps[0]),
        (parked::PARKED_MAX_MESSAGES, &(0..2)),
        "the oldest went"
    );
}

#[test]
fn facts_stay_in_the_outbox_until_the_broker_has_them_under_one_id() {
    let (office, job) = (Office::new(), Submitted::toy());
    let first = office.take([job.opened(), job.sealed(0)]);
    assert_eq!(names(&first), ["opened", "finished"]);
    let (mut clerk, again) = office.clerk().commit().unwrap();
    let ids = |outbox: &[OutboxBatch]| -> Vec<String> {
        outbox[0].rows.iter().map(|(_, row)| row.message.id.clone()).collect()
    };
    assert_eq!(ids(&again.outbox), ids(&first));
    assert!(ids(&first)[0].starts_with(clerk.ledger.id().as_str()));
    clerk.stored(Target::Journal, again.outbox[0].rows.iter().map(|(row, _)| *row).collect());
    let (clerk, rest) = clerk.commit().unwrap();
    assert!(rest.outbox.is_empty());
    drop(clerk);
    assert!(office.clerk().commit().unwrap().1.outbox.is_empty());
}

#[test]
fn one_batch_of_a_target_is_on_its_way_at_a_time_and_in_order() {
    let office = Office::new();
    let jobs: Vec<_> = (0..100).map(|_| Submitted::toy()).collect();
    let (mut clerk, mut committed) =
        take(office.clerk(), jobs.iter().map(Submitted::opened)).commit().unwrap();
    let mut seen = Vec::new();
    while let Some(batch) = committed.outbox.pop() {
        let (next, nothing) = clerk.commit().unwrap();
        assert!(nothing.outbox.is_empty(), "two batches at once");
        clerk = next;
        seen.extend(batch.rows.iter().map(|(_, row)| row.message.job.unwrap()));
        clerk.stored(batch.target, batch.rows.iter().map(|(row, _)| *row).collect());
        (clerk, committed) = clerk.commit().unwrap();
    }
    assert_eq!(seen, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
}

#[test]
fn kept_outputs_are_those_of_the_tasks_done_each_once() {
    let (office, job) = (Office::new(), Submitted::new(&Keeper {}));
    let whole = job.spans(&[(4, 2, r#"["e","f"]"#)], &[], 0);
    let around = job.spans(&[(2, 6, r#"["c",3,"E","F","g","h"]"#)], &[], 0);
    office.take([job.opened(), whole.clone(), around, whole, job.spans(&[(0, 2, r#"["a","b"]"#)], &[], 0)]);
    let read = |ordered, most: usize| {
        let mut outputs = Vec::new();
        let mut each = |index: gristmill_shared::TaskIndex, output: &serde_json::value::RawValue| {
            outputs.push(format!("{index}{}", output.get().replace('"', "")));
            if outputs.len() == most {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        };
        office.reader().outputs(job.id, ordered, &mut each).unwrap();
        outputs.join(" ")
    };
    assert_eq!(read(true, 99), "0a 1b 2c 4e 5f 6g 7h");
    assert_eq!(read(false, 99), "4e 5f 2c 6g 7h 0a 1b");
    assert_eq!(read(true, 2), "0a 1b");
    assert_eq!(office.account(&job).failed, 1);
}

#[test]
fn too_many_failures_end_a_job_that_is_to_fail_fast() {
    for (fail_fast, planned) in [(FailFast::Tasks(3), 1000), (FailFast::Percent(30), 10)] {
        let (office, mut job) = (Office::new(), Submitted::toy().planned(planned));
        job.opened.policy.fail_fast = Some(fail_fast);
        assert_eq!(names(&office.take([job.opened(), job.failed(&[1, 2])])), ["opened"]);
        office.take([job.failed(&[1]), job.failed(&[3])]);
        assert_eq!(office.state(&job), JobState::Stopped);
        assert!(office.account(&job).stopped.unwrap().starts_with("3 tasks failed"));
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
fn a_ledger_is_read_while_a_clerk_works_with_it() {
    let (office, job) = (Office::new(), Submitted::toy());
    let (clerk, _) = take(office.clerk(), [job.opened()]).commit().unwrap();
    let reader = office.reader();
    let (clerk, _) = take(clerk, [job.done(0..5)]).commit().unwrap();
    assert_eq!(reader.jobs().unwrap()[0].account.done, 5);
    assert!(matches!(Ledger::open(LedgerPlace::File(office.path.clone())), Err(SinkError::Held { .. })));
    let view = serde_json::to_value(reader.job(job.id).unwrap().unwrap()).unwrap();
    assert_eq!(
        (&view["account"]["done"], &view["report"], &view["state"]),
        (&5.into(), &10.into(), &"running".into())
    );
    assert!(reader.job(Submitted::toy().id).unwrap().is_none());
    let error = reader.verify(Submitted::toy().id).unwrap_err().to_string();
    assert!(error.contains("has no job") && error.contains("(hint:"), "{error}");
    drop(clerk);
}

#[test]
fn progress_is_told_of_jobs_that_move_and_of_their_end_at_once() {
    let (office, job, quick) = (Office::new(), Submitted::toy(), Submitted::toy());
    let (mut clerk, _) = take(office.clerk(), [job.opened(), job.done(0..3)]).commit().unwrap();
    assert_eq!(clerk.take_news()[0].1.account.done, 3);
    let (mut clerk, _) = take(clerk, [job.done(3..4), quick.opened(), quick.sealed(0)]).commit().unwrap();
    let news = clerk.take_news();
    assert_eq!(news.iter().map(|(_, progress)| progress.job).collect::<Vec<_>>(), [quick.id], "too often");
    assert!(news[0].1.sealed && clerk.news_due().unwrap() > Instant::now());
    let (mut clerk, _) = take(clerk, [quick.done(0..1), job.sealed(4)]).commit().unwrap();
    let news = clerk.take_news();
    assert_eq!((news.len(), news[0].1.job, news[0].1.busy_us), (1, job.id, 20), "late outcomes are no news");
    assert_eq!(clerk.report(), SinkReport { messages: 7, tasks: 4, jobs_ended: 2, dead: 0 });
}

fn messages(job: &Submitted, total: u64) -> impl Strategy<Value = Vec<Message>> + use<> {
    // Every task has one outcome: 3, 13, 23 … fail.
    let job = job.clone();
    let fails = |index: u64| index % 10 == 3;
    let pieces = prop::collection::vec((0..total, 1u64..30), 0..12);
    pieces.prop_map(move |pieces| {
        let extra = pieces.into_iter().map(|(start, len)| start..(start + len).min(total));
        let all = (0..total).step_by(7).map(|start| start..(start + 7).min(total));
        let as_message = |range: Range<u64>| {
            let (mut spans, mut failed) = (Vec::<(u64, u32, String)>::new(), Vec::new());
            for index in range {
                match spans.last_mut() {
                    _ if fails(index) => failed.push(index),
                    Some((first, count, outputs)) if *first + u64::from(*count) == index => {
                        *count += 1;
                        outputs.push_str(&format!(",{index}"));
                    }
                    _ => spans.push((index, 1, format!("[{index}"))),
                }
            }
            spans.iter_mut().for_each(|(_, _, outputs)| outputs.push(']'));
            let spans: Vec<_> =
                spans.iter().map(|(first, count, outputs)| (*first, *count, outputs.as_str())).collect();
            job.spans(&spans, &failed, 0)
        };
        all.chain(extra).map(as_message).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_order_repetition_grouping_and_crash_gives_the_same_ledger(
        (job, total, messages) in (1u64..90).prop_flat_map(|total| {
            let job = Submitted::toy();
            (Just(job.clone()), Just(total), messages(&job, total).prop_shuffle())
        }),
        seal_at in any::<prop::sample::Index>(),
        open_at in any::<prop::sample::Index>(),
        ends in prop::collection::vec((1usize..6, any::<bool>()), 1..8),
    ) {
        let outcomes: u64 = messages.iter().map(|message| {
            let results: gristmill_shared::wire::Results<'_> = decode(message).unwrap();
            results.done.iter().map(|span| u64::from(span.count)).sum::<u64>() + results.failed.len() as u64
        }).sum();
        let mut sequence = messages;
        sequence.insert(seal_at.index(sequence.len() + 1), job.sealed(total));
        sequence.insert(open_at.index(sequence.len() + 1), job.opened());
        let office = Office::new();
        let mut rest = &sequence[..];
        let mut repeated = 0;
        for (size, killed) in ends.iter().cycle() {
            let (group, others) = rest.split_at((*size).min(rest.len()));
            if *killed && repeated < 8 {
                drop(take(office.clerk(), group.iter().cloned())); // they come again
                repeated += 1;
                continue;
            }
            office.take(group.iter().cloned());
            rest = others;
            if rest.is_empty() {
                break;
            }
        }
        let verification = office.verify(&job);
        prop_assert!(verification.ok, "{:?}", verification);
        let failed = (0..total).filter(|index| index % 10 == 3).count() as u64;
        prop_assert_eq!((verification.done, verification.failed, verification.skipped), (total - failed, failed, 0));
        prop_assert_eq!(verification.duplicates + verification.late, outcomes - total);
        let expected: u64 = (0..total).filter(|index| index % 10 != 3).sum();
        let report = office.report(&job);
        prop_assert_eq!(report.parse::<u64>().unwrap_or_default(), expected);
        let view = office.reader().job(job.id).unwrap().unwrap();
        prop_assert_eq!(view.conclusion.unwrap().text, format!("{expected} from {} tasks", total - failed));
    }
}
