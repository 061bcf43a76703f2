//! Counting and storing of outcomes.

use gristmill_sqlite::SqliteLedger;

use super::*;

#[test]
fn job_finishes_with_last_outcome() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let outbox = fixture.commit([job.opened(), job.done(0..4), job.failed(&[4])]);
    assert_eq!(names(&outbox), ["opened"]);
    assert_eq!(fixture.state(&job), JobState::Running);
    let half = fixture.verify(&job);
    assert!(!half.ok && half.total.is_none() && half.reached == 5);
    assert!(half.to_string().starts_with("split not finished at 5"), "{half}");

    let mut engine = accept_all(fixture.engine(), [job.sealed(10), job.done(5..9)]);
    let mid = engine.save().map(|()| fixture.verify(&job)).unwrap();
    assert_eq!((&mid.gaps[0], mid.gaps.len(), mid.missing, mid.ok), (&(9..10), 1, 1, false));
    let (engine, committed) = accept_all(engine, [job.done(9..10)]).commit().unwrap();
    let [Fact::Opened(_), Fact::Finished(Finished { account, conclusion, .. })] =
        &facts(&committed.outbox)[..]
    else {
        panic!("{:?}", committed.outbox)
    };
    let expected = Account { total: Some(10), done: 9, failed: 1, ..Account::default() };
    assert_eq!(*account, expected);
    assert_eq!(conclusion.text, format!("{} from 9 tasks", 45 - 4));
    assert!(engine.jobs.is_empty(), "a finished job stays in memory");
    assert!(fixture.verify(&job).ok);
    assert_eq!(fixture.account(&job), expected);
    assert_eq!(fixture.conclusion(&job), *conclusion);
    let failure = fixture.failures(&job).remove(0);
    assert_eq!((failure.index.0, failure.attempts, &*failure.reason), (4, 5, "task 4 is bad"));
    assert_eq!((failure.worker, failure.task.unwrap().get()), (Some(app()), "\"payload\""));
}

/// An output overrides a failure, never the other way round.
#[test]
fn output_overrides_failure() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.opened(), job.failed(&[0, 1, 2]), job.done(1..2)]);
    fixture.commit([job.done(2..4), job.failed(&[1, 3]), job.failed(&[0])]);
    let account = fixture.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (3, 1, 3));
    fixture.commit([job.sealed(4), job.done(0..1)]);
    let account = fixture.account(&job);
    assert_eq!((account.done, account.failed, account.late), (3, 1, 1), "the job was finished");
    assert_eq!(fixture.report(&job), sum(1..4));
}

#[test]
fn redelivered_results_count_once() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let second = [job.done(2..6), job.failed(&[6])];
    fixture.commit([job.opened(), job.done(0..3)]);
    drop(accept_all(fixture.engine(), second.clone())); // killed between folding and committing
    assert_eq!(fixture.report(&job), sum(0..3));
    let unacknowledged = accept_all(fixture.engine(), second.clone()).commit().unwrap();
    drop(unacknowledged); // killed between committing and acknowledging
    fixture.commit(second);
    let account = fixture.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (6, 1, 1 + 5));
    assert_eq!(
        fixture.reader().jobs().unwrap()[0].busy_us,
        3 * 10,
        "what is new took time, what came again did not"
    );
    assert_eq!(fixture.report(&job), sum(0..6));
    fixture.commit([job.sealed(7)]);
    assert!(fixture.verify(&job).ok);
}

#[test]
fn failed_commit_changes_nothing() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let outputs = vec!["\"a long output\""; 1000].join(",");
    let keeper = SubmittedJob::new(&KeeperJob {});
    fixture.commit([job.opened(), job.done(0..3), keeper.opened()]);
    let mut ledger = SqliteLedger::open(LedgerLocation::File(fixture.path.clone())).unwrap();
    ledger.fill().unwrap();
    let engine = LedgerEngine::new(Box::new(ledger), registry(), Lane::default(), app());
    let large = keeper.spans(&[(0, 1000, &format!("[{outputs}]"))], &[], 0);
    let error = accept_all(engine, [job.done(3..9), large.clone()]).commit().unwrap_err();
    assert!(matches!(error, SinkError::Ledger(LedgerError::Storage { .. })), "{error}");
    assert!(gristmill_shared::error_chain(&error).contains("full"), "{error}");
    assert_eq!(fixture.report(&job), sum(0..3));
    fixture.commit([job.done(3..9), large]);
    assert_eq!(fixture.report(&job), sum(0..9));
    assert_eq!(fixture.account(&job).duplicates, 0);
    assert_eq!(fixture.account(&keeper).done, 1000);
}

#[test]
fn undecodable_output_fails_task() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let results = job.spans(&[(0, 3, r#"[0,"one",2]"#)], &[], 0);
    fixture.commit([job.opened(), results.clone(), results, job.sealed(3)]);
    let account = fixture.account(&job);
    assert_eq!((account.done, account.failed, account.duplicates), (2, 1, 3));
    let failure = fixture.failures(&job).remove(0);
    assert!(failure.reason.contains("does not decode as an output of kind toy"));
    assert_eq!(failure.worker, Some(app()));
    assert!(fixture.verify(&job).ok);
}

#[test]
fn each_output_is_kept_once() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&KeeperJob {}));
    let whole = job.spans(&[(4, 2, r#"["e","f"]"#)], &[], 0);
    let around = job.spans(&[(2, 6, r#"["c",3,"E","F","g","h"]"#)], &[], 0);
    fixture.commit([
        job.opened(),
        whole.clone(),
        around,
        whole,
        job.spans(&[(0, 2, r#"["a","b"]"#)], &[], 0),
    ]);
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
        fixture.reader().outputs(job.id, ordered, &mut each).unwrap();
        outputs.join(" ")
    };
    assert_eq!(read(true, 99), "0a 1b 2c 4e 5f 6g 7h");
    assert_eq!(read(false, 99), "4e 5f 2c 6g 7h 0a 1b");
    assert_eq!(read(true, 2), "0a 1b");
    assert_eq!(fixture.account(&job).failed, 1);
}

#[test]
fn ledger_is_readable_during_writes() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let (engine, _) = accept_all(fixture.engine(), [job.opened()]).commit().unwrap();
    let mut reader = fixture.reader();
    let (engine, _) = accept_all(engine, [job.done(0..5)]).commit().unwrap();
    assert_eq!(reader.jobs().unwrap()[0].account.done, 5);
    assert!(matches!(
        SqliteLedger::open(LedgerLocation::File(fixture.path.clone())),
        Err(LedgerError::Locked { .. })
    ));
    let view = serde_json::to_value(reader.job(job.id).unwrap().unwrap()).unwrap();
    assert_eq!(
        (&view["account"]["done"], &view["report"], &view["state"]),
        (&5.into(), &10.into(), &"running".into())
    );
    assert!(reader.job(SubmittedJob::toy().id).unwrap().is_none());
    let error = reader.verify(SubmittedJob::toy().id).unwrap_err().to_string();
    assert!(error.contains("has no job") && error.contains("(hint:"), "{error}");
    drop(engine);
}

/// Progress of jobs that move is throttled; their end is published at once.
#[test]
fn progress_events_are_throttled() {
    let (fixture, job, quick) = (EngineFixture::new(), SubmittedJob::toy(), SubmittedJob::toy());
    let (mut engine, _) = accept_all(fixture.engine(), [job.opened(), job.done(0..3)]).commit().unwrap();
    assert_eq!(progress(&mut engine)[0].account.done, 3);
    let (mut engine, _) =
        accept_all(engine, [job.done(3..4), quick.opened(), quick.sealed(0)]).commit().unwrap();
    let news = progress(&mut engine);
    assert_eq!(news.iter().map(|progress| progress.job).collect::<Vec<_>>(), [quick.id], "too often");
    assert!(news[0].sealed && engine.events_due().unwrap() > Instant::now());
    let (mut engine, _) = accept_all(engine, [quick.done(0..1), job.sealed(4)]).commit().unwrap();
    let news = progress(&mut engine);
    assert_eq!((news.len(), news[0].job, news[0].busy_us), (1, job.id, 20), "late outcomes are no news");
    assert_eq!(engine.report(), SinkReport { messages: 7, tasks: 4, jobs_ended: 2, dead: 0 });
}

/// Progress is published at once when it has doubled, and when a producer resumes the job.
#[test]
fn doubled_progress_is_immediate() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let (mut engine, _) = accept_all(fixture.engine(), [job.opened()]).commit().unwrap();
    drop(progress(&mut engine)); // starts the clock
    let mut told = Vec::new();
    for index in 0..20 {
        (engine, _) = accept_all(engine, [job.done(index..index + 1)]).commit().unwrap();
        told.extend(progress(&mut engine).iter().map(|progress| progress.account.done));
    }
    assert_eq!(told, [1, 2, 4, 8, 16]);
    drop(engine);

    // Another sink on the same ledger.
    let (mut engine, _) = accept_all(fixture.engine(), [job.opened()]).commit().unwrap();
    let told = progress(&mut engine);
    assert_eq!((told.len(), told[0].account.done, told[0].busy_us), (1, 20, 200));
}

fn progress(engine: &mut LedgerEngine) -> Vec<Progress> {
    let news = engine.take_events().into_iter();
    news.map(|(_, event)| match event {
        Event::Progress(progress) => progress,
        other => panic!("{other:?}"),
    })
    .collect()
}
