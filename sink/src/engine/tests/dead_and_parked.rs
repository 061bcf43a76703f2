//! What is no outcome: dead and parked messages, and what goes out.

use super::*;

#[test]
fn what_is_malformed_goes_to_the_dead_queue_with_the_reason() {
    let (office, job) = (Office::new(), Submitted::toy().planned(5));
    let wrong_count = job.spans(&[(0, 1, "[0]"), (1, 3, "[1]")], &[], 0);
    let beyond = job.spans(&[(4, 2, "[4,5]"), (2, 1, "[2]")], &[9, 3], 0);
    let endless = job.spans(&[(u64::MAX, 2, "[0,0]")], &[], 0);
    let outbox = office.take([job.opened(), garbage(), wrong_count, beyond, endless]);
    let dead = outbox.iter().find(|batch| batch.target == Target::Dead).unwrap();
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
    let account = office.account(&job);
    assert_eq!(
        (account.done, account.failed),
        (3, 1),
        "0, 2, 3 and 4 have an outcome, whatever came with them"
    );
}

#[test]
fn a_reason_that_quotes_the_whole_message_is_cut() {
    let (office, job) = (Office::new(), Submitted::toy());
    let mut results = job.done(0..1);
    let spoilt = format!("\"busy_us\":\"{}\"", "9".repeat(70_000));
    results.body =
        String::from_utf8(results.body.to_vec()).unwrap().replace("\"busy_us\":10", &spoilt).into();
    let outbox = office.take([job.opened(), results]);
    let dead = outbox.iter().find(|batch| batch.target == Target::Dead).unwrap();
    let reason = dead.rows[0].1.message.headers.reason.as_deref().unwrap();
    assert!(reason.len() <= REASON_MAX_BYTES && reason.contains("invalid type: string \"999"), "{reason}");
}

#[test]
fn what_the_dead_queue_does_not_take_is_dealt_with_all_the_same() {
    let (office, job) = (Office::new(), Submitted::toy().planned(2));
    let (mut clerk, committed) =
        take(office.clerk(), [garbage(), job.batch(0, 2), job.opened()]).commit().unwrap();
    for batch in &committed.outbox {
        let answered = if batch.target == Target::Dead { all_refused(batch) } else { all_stored(batch) };
        clerk.answered(answered).unwrap();
    }
    let (clerk, rest) = clerk.commit().unwrap();
    drop((clerk, rest));
    let dead = office.reader().dead().unwrap().messages;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((&*dead[0].form, dead[0].origin.as_deref()), ("spam.v1", Some("gristmill.default.results")));
    assert!(dead[0].reason.contains("no message for a sink has the type \"spam.v1\""), "{dead:?}");
    assert_eq!(office.account(&job).failed, 2, "the tasks of a batch get their outcome");
    assert!(office.take([]).is_empty(), "they are struck");
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
    let failures = office.failures(&job);
    assert!(
        failures.iter().all(|failure| failure.worker.is_none()),
        "a message was given up, no worker ran it"
    );
    let failures: Vec<_> =
        failures.iter().map(|row| (row.index.0, &*row.reason, row.task.as_ref().unwrap().get())).collect();
    assert_eq!(failures, [(2, "the spec does not fit", "2"), (3, "the spec does not fit", "3")]);
    assert_eq!(office.account(&job).duplicates, 1);
}

#[test]
fn the_record_of_dead_messages_is_bounded() {
    let office = Office::new();
    let mut clerk = office.clerk();
    for _ in 0..crate::ledger::dead_rows::DEAD_MAX_MESSAGES + 3 {
        clerk.take_dead(delivery(garbage())).unwrap();
    }
    clerk.commit().unwrap();
    let dead = office.reader().dead().unwrap();
    assert_eq!((dead.messages.len() as u64, dead.dropped), (crate::ledger::dead_rows::DEAD_MAX_MESSAGES, 3));
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
    office.take((0..parked_rows::PARKED_MAX_MESSAGES + 2).map(|index| job.done(index..index + 1)));
    let parked = office.reader().parked().unwrap();
    assert_eq!((parked.jobs[0].messages, parked.dropped), (parked_rows::PARKED_MAX_MESSAGES, 2));
    office.take([job.opened()]);
    let verification = office.reader().verify(job.id).unwrap();
    assert_eq!(
        (verification.done, &verification.gaps[0]),
        (parked_rows::PARKED_MAX_MESSAGES, &(0..2)),
        "the oldest went"
    );
}

#[test]
fn parking_is_bounded_in_bytes_too() {
    let (office, job) = (Office::new(), Submitted::toy());
    let large =
        Message { body: vec![b' '; parked_rows::PARKED_MAX_BYTES as usize / 8].into(), ..job.sealed(1) };
    let mut clerk = office.clerk();
    // As if they had been decoded: what is parked is not read again until its job is opened.
    (0..5_000).for_each(|index| clerk.parking.park(job.id, &job.done(index..index + 1)));
    (0..9).for_each(|_| clerk.parking.park(job.id, &large));
    clerk.commit().unwrap();
    let parked = office.reader().parked().unwrap();
    assert_eq!((parked.jobs[0].bytes, parked.dropped), (parked_rows::PARKED_MAX_BYTES, 5_001));
}

#[test]
fn nothing_is_sent_again_of_a_job_that_is_not_known() {
    let (office, job) = (Office::new(), Submitted::toy());
    office.take([job.failed(&[0]), job.sealed(2), job.reopen(&[]), job.done(1..2)]);
    // With the job come the messages that waited for it, all in one commit: an end in the midst of it takes none away.
    let clerk = take(office.clerk(), [job.opened()]);
    drop(clerk);
    assert_eq!(office.reader().parked().unwrap().jobs[0].messages, 3);
    let outbox = office.take([job.opened()]);
    assert_eq!(names(&outbox), ["opened", "finished"]);
    let account = office.account(&job);
    assert_eq!((account.done, account.failed), (1, 1));
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
    clerk.answered(all_stored(&again.outbox[0])).unwrap();
    let (clerk, rest) = clerk.commit().unwrap();
    assert!(rest.outbox.is_empty());
    drop(clerk);
    assert!(office.clerk().commit().unwrap().1.outbox.is_empty());
}

#[test]
fn what_is_committed_goes_out_when_the_batch_before_is_stored_and_strikes_are_not_waited_for() {
    let (office, first, second) = (Office::new(), Submitted::toy(), Submitted::toy());
    let (clerk, mut committed) = take(office.clerk(), [first.opened()]).commit().unwrap();
    let (mut clerk, nothing) = take(clerk, [second.opened()]).commit().unwrap();
    assert!(nothing.outbox.is_empty(), "two batches at once");
    let batch = committed.outbox.remove(0);
    clerk.answered(all_stored(&batch)).unwrap();
    assert_eq!(facts(&clerk.outbox().unwrap()).len(), 1);
    assert_eq!(clerk.urgency(), Some(Urgency::AtLeisure));
}

#[test]
fn an_end_is_urgent_and_progress_is_not() {
    let (office, job) = (Office::new(), Submitted::toy());
    let clerk = take(office.clerk(), [job.opened(), job.done(0..2)]);
    assert_eq!(clerk.urgency(), Some(Urgency::Soon));
    let clerk = take(clerk, [job.sealed(2)]);
    assert_eq!(clerk.urgency(), Some(Urgency::Now));
    assert_eq!(clerk.commit().unwrap().0.urgency(), None);
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
        clerk.answered(all_stored(&batch)).unwrap();
        (clerk, committed) = clerk.commit().unwrap();
    }
    assert_eq!(seen, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
}
