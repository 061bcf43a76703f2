//! What counts, and what is stored.

use super::*;

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
    let failure = office.failures(&job).remove(0);
    assert_eq!((failure.index.0, failure.attempts, &*failure.reason), (4, 5, "task 4 is bad"));
    assert_eq!((failure.worker, failure.task.unwrap().get()), (Some(app()), "\"payload\""));
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
    assert_eq!(
        office.reader().jobs().unwrap()[0].busy_us,
        3 * 10,
        "what is new took time, what came again did not"
    );
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
fn an_output_that_is_none_is_a_failure_of_its_task() {
    let (office, job) = (Office::new(), Submitted::toy());
    let results = job.spans(&[(0, 3, r#"[0,"one",2]"#)], &[], 0);
    office.take([job.opened(), results.clone(), results, job.sealed(3)]);
    let account = office.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (2, 1, 3));
    let failure = office.failures(&job).remove(0);
    assert!(failure.reason.contains("does not decode as an output of kind toy"));
    assert_eq!(failure.worker, Some(app()));
    assert!(office.verify(&job).ok);
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
    assert_eq!(progress(&mut clerk)[0].account.done, 3);
    let (mut clerk, _) = take(clerk, [job.done(3..4), quick.opened(), quick.sealed(0)]).commit().unwrap();
    let news = progress(&mut clerk);
    assert_eq!(news.iter().map(|progress| progress.job).collect::<Vec<_>>(), [quick.id], "too often");
    assert!(news[0].sealed && clerk.news_due().unwrap() > Instant::now());
    let (mut clerk, _) = take(clerk, [quick.done(0..1), job.sealed(4)]).commit().unwrap();
    let news = progress(&mut clerk);
    assert_eq!((news.len(), news[0].job, news[0].busy_us), (1, job.id, 20), "late outcomes are no news");
    assert_eq!(clerk.report(), SinkReport { messages: 7, tasks: 4, jobs_ended: 2, dead: 0 });
}

#[test]
fn progress_is_told_at_once_when_it_has_doubled_and_when_a_producer_takes_the_job_up_again() {
    let (office, job) = (Office::new(), Submitted::toy());
    let (mut clerk, _) = take(office.clerk(), [job.opened()]).commit().unwrap();
    drop(progress(&mut clerk)); // starts the clock
    let mut told = Vec::new();
    for index in 0..20 {
        (clerk, _) = take(clerk, [job.done(index..index + 1)]).commit().unwrap();
        told.extend(progress(&mut clerk).iter().map(|progress| progress.account.done));
    }
    assert_eq!(told, [1, 2, 4, 8, 16]);
    drop(clerk);

    // Another sink, which has the ledger.
    let (mut clerk, _) = take(office.clerk(), [job.opened()]).commit().unwrap();
    let told = progress(&mut clerk);
    assert_eq!((told.len(), told[0].account.done, told[0].busy_us), (1, 20, 200));
}

fn progress(clerk: &mut Clerk) -> Vec<Progress> {
    let news = clerk.take_news().into_iter();
    news.map(|(_, event)| match event {
        Event::Progress(progress) => progress,
        other => panic!("{other:?}"),
    })
    .collect()
}
