//! Messages without outcomes: dead and parked messages, and the outbox.

use super::*;

/// Malformed messages go to the dead queue with the reason.
#[test]
fn malformed_results_are_dead() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy().planned(5));
    let wrong_count = job.spans(&[(0, 1, "[0]"), (1, 3, "[1]")], &[], 0);
    let beyond = job.spans(&[(4, 2, "[4,5]"), (2, 1, "[2]")], &[9, 3], 0);
    let endless = job.spans(&[(u64::MAX, 2, "[0,0]")], &[], 0);
    let outbox = fixture.commit([job.opened(), garbage(), wrong_count, beyond, endless]);
    let dead = outbox.iter().find(|batch| batch.target == OutboxTarget::Dead).unwrap();
    let expected = [
        "no message for a sink has the type \"spam.v1\"",
        "the span says it has 3 outputs, but has 1",
        "it has outcomes for 2 tasks from index 4 on, but the job has 5 tasks",
        "\"18446744073709551615\" is not a task index",
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
    let account = fixture.account(&job);
    assert_eq!(
        (account.done, account.failed),
        (3, 1),
        "0, 2, 3 and 4 have an outcome, whatever came with them"
    );
}

#[test]
fn long_dead_reason_is_cut() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let mut results = job.done(0..1);
    let spoilt = format!("\"busy_us\":\"{}\"", "9".repeat(70_000));
    results.body =
        String::from_utf8(results.body.to_vec()).unwrap().replace("\"busy_us\":10", &spoilt).into();
    let outbox = fixture.commit([job.opened(), results]);
    let dead = outbox.iter().find(|batch| batch.target == OutboxTarget::Dead).unwrap();
    let reason = dead.rows[0].1.message.headers.reason.as_deref().unwrap();
    assert!(reason.len() <= REASON_MAX_BYTES && reason.contains("invalid type: string \"999"), "{reason}");
}

/// Messages that the dead queue refuses are processed as if they had come from there.
#[test]
fn refused_dead_message_is_processed() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy().planned(2));
    let (mut engine, committed) =
        accept_all(fixture.engine(), [garbage(), job.batch(0, 2), job.opened()]).commit().unwrap();
    for batch in &committed.outbox {
        let answered =
            if batch.target == OutboxTarget::Dead { all_refused(batch) } else { all_stored(batch) };
        engine.apply_answer(answered).unwrap();
    }
    let (engine, rest) = engine.commit().unwrap();
    drop((engine, rest));
    let dead = fixture.reader().dead().unwrap().messages;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((&*dead[0].form, dead[0].origin.as_deref()), ("spam.v1", Some("gristmill.default.results")));
    assert!(dead[0].reason.contains("no message for a sink has the type \"spam.v1\""), "{dead:?}");
    assert_eq!(fixture.account(&job).failed, 2, "the tasks of a batch get their outcome");
    assert!(fixture.commit([]).is_empty(), "they are struck");
}

/// Dead messages are recorded, and the tasks of dead batches fail.
#[test]
fn dead_batches_become_failures() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let mut engine = accept_all(fixture.engine(), [job.opened(), job.done(0..2)]);
    let mut batch = job.batch(1, 3);
    batch.headers.reason = Some("the spec does not fit".into());
    let mut torn = job.batch(5, 2);
    torn.body = String::from_utf8(torn.body.to_vec()).unwrap().replace("[5,6]", "[5]").into();
    for message in [garbage(), batch, torn] {
        engine.accept_dead(delivery(message)).unwrap();
    }
    engine.commit().unwrap();
    let dead = fixture.reader().dead().unwrap();
    let reasons: Vec<_> = dead.messages.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(reasons[0], "the batch says it has 2 tasks, but has 1");
    assert!(reasons[1].contains("spam.v1"), "{reasons:?}");
    assert_eq!((dead.messages[1].bytes, &*dead.messages[1].body), (10, "\u{fffd} not ours"));
    let failures = fixture.failures(&job);
    assert!(
        failures.iter().all(|failure| failure.worker.is_none()),
        "a message was given up, no worker ran it"
    );
    let failures: Vec<_> =
        failures.iter().map(|row| (row.index.0, &*row.reason, row.task.as_ref().unwrap().get())).collect();
    assert_eq!(failures, [(2, "the spec does not fit", "2"), (3, "the spec does not fit", "3")]);
    assert_eq!(fixture.account(&job).duplicates, 1);
}

#[test]
fn dead_record_is_bounded() {
    let fixture = EngineFixture::new();
    let mut engine = fixture.engine();
    for _ in 0..DEAD_MAX_MESSAGES + 3 {
        engine.accept_dead(delivery(garbage())).unwrap();
    }
    engine.commit().unwrap();
    let dead = fixture.reader().dead().unwrap();
    assert_eq!((dead.messages.len() as u64, dead.dropped), (DEAD_MAX_MESSAGES, 3));
}

#[test]
fn early_results_are_parked() {
    let (fixture, job, other) = (EngineFixture::new(), SubmittedJob::toy(), SubmittedJob::toy());
    fixture.commit([job.done(2..5), other.done(0..1), job.sealed(6)]);
    let mut engine = fixture.engine();
    engine.accept_dead(delivery(job.batch(5, 1))).unwrap();
    let parked = fixture.reader().parked().unwrap();
    assert_eq!(
        parked.jobs.iter().map(|row| (row.job, row.messages)).collect::<Vec<_>>(),
        [(job.id, 2), (other.id, 1)]
    );
    accept_all(engine, [job.opened(), job.done(0..2)]).commit().unwrap();
    assert!(fixture.verify(&job).ok);
    assert_eq!((fixture.report(&job), fixture.account(&job).failed), (sum(0..5), 1));
    let left = fixture.reader().parked().unwrap();
    assert_eq!((left.jobs.len(), left.jobs[0].job, left.dropped), (1, other.id, 0));
}

#[test]
fn parking_is_bounded_in_messages() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit((0..PARKED_MAX_MESSAGES + 2).map(|index| job.done(index..index + 1)));
    let parked = fixture.reader().parked().unwrap();
    assert_eq!((parked.jobs[0].messages, parked.dropped), (PARKED_MAX_MESSAGES, 2));
    fixture.commit([job.opened()]);
    let verification = fixture.reader().verify(job.id).unwrap();
    assert_eq!((verification.done, &verification.gaps[0]), (PARKED_MAX_MESSAGES, &(0..2)), "the oldest went");
}

#[test]
fn parking_is_bounded_in_bytes() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let large = Message { body: vec![b' '; PARKED_MAX_BYTES as usize / 8].into(), ..job.sealed(1) };
    let mut engine = fixture.engine();
    // As if they had been decoded: a parked message is not read again until its job is opened.
    (0..5_000).for_each(|index| engine.parking.park(job.id, &job.done(index..index + 1)));
    (0..9).for_each(|_| engine.parking.park(job.id, &large));
    engine.commit().unwrap();
    let parked = fixture.reader().parked().unwrap();
    assert_eq!((parked.jobs[0].bytes, parked.dropped), (PARKED_MAX_BYTES, 5_001));
}

#[test]
fn unknown_job_is_not_reopened() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.failed(&[0]), job.sealed(2), job.reopen(&[]), job.done(1..2)]);
    // The opening commits together with the messages that waited for it: a crash in between loses
    // none.
    let engine = accept_all(fixture.engine(), [job.opened()]);
    drop(engine);
    assert_eq!(fixture.reader().parked().unwrap().jobs[0].messages, 3);
    let outbox = fixture.commit([job.opened()]);
    assert_eq!(names(&outbox), ["opened", "finished"]);
    let account = fixture.account(&job);
    assert_eq!((account.done, account.failed), (1, 1));
}

/// Facts stay in the outbox until the broker confirms them, and keep their id.
#[test]
fn facts_stay_until_confirmed() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let first = fixture.commit([job.opened(), job.sealed(0)]);
    assert_eq!(names(&first), ["opened", "finished"]);
    let (mut engine, again) = fixture.engine().commit().unwrap();
    let ids = |outbox: &[OutboxBatch]| -> Vec<String> {
        outbox[0].rows.iter().map(|(_, row)| row.message.id.clone()).collect()
    };
    assert_eq!(ids(&again.outbox), ids(&first));
    assert!(ids(&first)[0].starts_with(engine.ledger.id().as_str()));
    engine.apply_answer(all_stored(&again.outbox[0])).unwrap();
    let (engine, rest) = engine.commit().unwrap();
    assert!(rest.outbox.is_empty());
    drop(engine);
    assert!(fixture.engine().commit().unwrap().1.outbox.is_empty());
}

/// Committed rows are published when the batch before is confirmed; deleting rows is lazy.
#[test]
fn next_batch_follows_confirm() {
    let (fixture, first, second) = (EngineFixture::new(), SubmittedJob::toy(), SubmittedJob::toy());
    let (engine, mut committed) = accept_all(fixture.engine(), [first.opened()]).commit().unwrap();
    let (mut engine, nothing) = accept_all(engine, [second.opened()]).commit().unwrap();
    assert!(nothing.outbox.is_empty(), "two batches at once");
    let batch = committed.outbox.remove(0);
    engine.apply_answer(all_stored(&batch)).unwrap();
    assert_eq!(facts(&engine.next_outbox().unwrap()).len(), 1);
    assert_eq!(engine.urgency(), Some(Urgency::Lazy));
}

#[test]
fn end_is_more_urgent_than_progress() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let engine = accept_all(fixture.engine(), [job.opened(), job.done(0..2)]);
    assert_eq!(engine.urgency(), Some(Urgency::Batched));
    let engine = accept_all(engine, [job.sealed(2)]);
    assert_eq!(engine.urgency(), Some(Urgency::Immediate));
    assert_eq!(engine.commit().unwrap().0.urgency(), None);
}

/// One batch of a target is in flight at a time, in order.
#[test]
fn one_batch_per_target_in_order() {
    let fixture = EngineFixture::new();
    let jobs: Vec<_> = (0..100).map(|_| SubmittedJob::toy()).collect();
    let (mut engine, mut committed) =
        accept_all(fixture.engine(), jobs.iter().map(SubmittedJob::opened)).commit().unwrap();
    let mut seen = Vec::new();
    while let Some(batch) = committed.outbox.pop() {
        let (next, nothing) = engine.commit().unwrap();
        assert!(nothing.outbox.is_empty(), "two batches at once");
        engine = next;
        seen.extend(batch.rows.iter().map(|(_, row)| row.message.job.unwrap()));
        engine.apply_answer(all_stored(&batch)).unwrap();
        (engine, committed) = engine.commit().unwrap();
    }
    assert_eq!(seen, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
}
