//! What a producer sends, and when it stops, on the memory transport.

use std::{future::Future, ops::ControlFlow, sync::Arc, time::Duration};

use gristmill_producer::{
    Cancelling, CursorDir, News, Producer, ProducerError, SplitEnd, SubmitOptions, Watch, cancel,
};
use gristmill_shared::{
    Account, Address, Conclusion, Consumer, Job, JobError, JobId, JournalEntry, Kind, Lane, Message,
    Outgoing, Plan, QueueRole, Registry, Round, TASKS_MAX_MESSAGES, TaskContext, TaskError, TaskIndex, Topic,
    Transport, erase,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{Audit, Batch, Fact, Finished, Form, Missing, Progress, Reopened, Stopped, ToSink, decode},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Counts to `tasks`; may fail on its way, or plan something else.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Count {
    tasks: u64,
    plan: Option<u64>,
    fail_at: Option<u64>,
    #[serde(default)]
    panic: bool,
}

impl Job for Count {
    const KIND: &'static str = "count";
    type Task = u64;
    type Output = ();
    type Report = ();

    fn plan(&self) -> Result<Plan, JobError> {
        if self.tasks == 0 {
            return Err(JobError::new("nothing to count"));
        }
        Ok(self.plan.map_or_else(Plan::unknown, Plan::of))
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        assert!(!self.panic, "no hands");
        let fail_at = self.fail_at;
        (0..self.tasks)
            .map(move |n| if fail_at == Some(n) { Err(JobError::new("out of fingers")) } else { Ok(n) })
    }
    fn process(&self, _: u64, _: &TaskContext) -> Result<(), TaskError> {
        Ok(())
    }
    fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn count(tasks: u64) -> Count {
    Count { tasks, ..Count::default() }
}

fn options(batch: u32) -> SubmitOptions {
    SubmitOptions { batch: Some(batch), ..SubmitOptions::default() }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

async fn consume(transport: &dyn Transport, role: QueueRole) -> Box<dyn Consumer> {
    transport.consume(&role.of(&Lane::default()), 500).await.unwrap()
}

/// Everything that waits in a queue.
async fn drain(transport: &dyn Transport, role: QueueRole) -> Vec<Message> {
    let mut consumer = consume(transport, role).await;
    let mut all = Vec::new();
    while let Ok(deliveries) = timeout(Duration::from_millis(50), consumer.recv(500)).await {
        for delivery in deliveries.unwrap() {
            delivery.receipt.ack();
            all.push(delivery.message);
        }
    }
    all
}

fn first_and_count(message: &Message) -> (u64, u32) {
    let batch = decode::<Batch<'_>>(message).unwrap();
    let tasks: Vec<u64> = serde_json::from_str(batch.tasks.get()).unwrap();
    let indices: Vec<u64> = (batch.first.0..batch.first.0 + u64::from(batch.count)).collect();
    assert_eq!(tasks, indices, "a task has another index than its place in the split");
    (batch.first.0, batch.count)
}

fn seal(messages: &[Message]) -> (u64, String) {
    let seals: Vec<_> = messages
        .iter()
        .filter_map(|message| match ToSink::decode(message).unwrap() {
            ToSink::Sealed(sealed) => Some((sealed.total, sealed.digest)),
            _ => None,
        })
        .collect();
    assert_eq!(seals.len(), 1);
    seals[0].clone()
}

#[tokio::test]
async fn a_job_is_opened_sent_in_order_and_sealed() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test");
    let submission = producer.open(erase(count(10)), options(4)).await.unwrap();
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty(), "a task was sent before the job was sent");
    let opened = drain(&*transport, QueueRole::Results).await;
    assert!(
        matches!(&ToSink::decode(&opened[0]).unwrap(), ToSink::Opened(opened) if opened.kind.as_str() == "count")
    );

    let report = within(submission.send()).await.unwrap();
    assert_eq!((report.end, report.sent), (SplitEnd::Sealed, 10));
    let batches: Vec<_> = drain(&*transport, QueueRole::Tasks).await.iter().map(first_and_count).collect();
    assert_eq!(batches, [(0, 4), (4, 4), (8, 2)]);
    assert_eq!(seal(&drain(&*transport, QueueRole::Results).await).0, 10);
}

#[tokio::test]
async fn a_refused_plan_sends_nothing() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let producer = Producer::new(Arc::clone(&transport), "test");
    let error = producer.open(erase(count(0)), options(1)).await.unwrap_err();
    assert!(matches!(error, ProducerError::Plan(why) if why.to_string() == "nothing to count"));
    assert!(drain(&*transport, QueueRole::Results).await.is_empty());
}

#[tokio::test]
async fn the_backlog_is_bounded_and_nothing_is_lost_when_the_queue_is_full() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let total = TASKS_MAX_MESSAGES * 3;
    let submission =
        Producer::new(Arc::clone(&transport), "test").open(erase(count(total)), options(1)).await.unwrap();
    let mut sending = tokio::spawn(submission.send());
    let stuck = timeout(Duration::from_millis(300), &mut sending).await;
    assert!(stuck.is_err(), "it sent more than the queue holds");
    let mut consumer = consume(&*transport, QueueRole::Tasks).await;
    let mut seen = vec![0; usize::try_from(total).unwrap()];
    while seen.contains(&0) {
        for delivery in within(consumer.recv(500)).await.unwrap() {
            seen[usize::try_from(first_and_count(&delivery.message).0).unwrap()] += 1;
            delivery.receipt.ack();
        }
    }
    assert_eq!(within(sending).await.unwrap().unwrap().sent, total);
    assert!(seen.iter().all(|times| *times == 1), "refused messages were stored, or sent twice");
}

#[tokio::test]
async fn a_failing_split_and_a_wrong_plan_abort_the_job_and_never_seal_it() {
    let failing = Count { fail_at: Some(5), ..count(10) };
    let wrong = Count { plan: Some(11), ..count(10) };
    let panicking = Count { panic: true, ..count(10) };
    for (job, reason) in [
        (panicking, "split failed before task 0: panic: no hands"),
        (failing, "split failed at task 5: out of fingers"),
        (wrong, "the job planned 11 tasks, but its split gave 10"),
    ] {
        let transport: Arc<dyn Transport> = MemoryTransport::new();
        let submission =
            Producer::new(Arc::clone(&transport), "test").open(erase(job), options(2)).await.unwrap();
        assert!(matches!(within(submission.send()).await, Err(ProducerError::Split(_))));
        let told = drain(&*transport, QueueRole::Results).await;
        assert_eq!(told.len(), 2);
        let last = ToSink::decode(&told[1]).unwrap();
        assert!(matches!(&last, ToSink::Aborted(aborted) if aborted.reason == reason), "{last:?}");
    }
}

#[tokio::test]
async fn a_stopped_job_is_not_split_to_its_end() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let endless = count(u64::MAX);
    let submission =
        Producer::new(Arc::clone(&transport), "test").open(erase(endless), options(1)).await.unwrap();
    let job = submission.id();
    let sending = tokio::spawn(submission.send());
    let mut consumer = consume(&*transport, QueueRole::Tasks).await;
    within(consumer.recv(1)).await.unwrap();
    let told =
        cancel(&*transport, &Lane::default(), job, Some(Lane::default()), "enough", "test").await.unwrap();
    assert_eq!(told, Cancelling::Told);
    assert_eq!(within(sending).await.unwrap().unwrap().end, SplitEnd::Stopped);
    let told = drain(&*transport, QueueRole::Results).await;
    assert!(
        matches!(&ToSink::decode(&told[1]).unwrap(), ToSink::Cancelled(cancelled) if cancelled.reason == "enough")
    );
    assert_eq!(told.len(), 2, "it was sealed");
}

#[tokio::test]
async fn an_interrupted_job_goes_on_at_its_cursor_and_ends_in_the_same_seal() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let total = TASKS_MAX_MESSAGES + 500;
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();

    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(total)), options(1)).await.unwrap();
    let job = submission.id();
    // The queue fills up, the cursor is saved, and then the producer is no more.
    assert!(timeout(Duration::from_millis(1500), submission.send()).await.is_err());
    let cursor = cursors.load(job).unwrap();
    assert!(cursor.confirmed.0 > 0 && cursor.confirmed.0 <= TASKS_MAX_MESSAGES, "{:?}", cursor.confirmed);
    let before = drain(&*transport, QueueRole::Tasks).await;
    assert!(before.len() as u64 >= cursor.confirmed.0, "the cursor is ahead of what is stored");

    let other = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "2");
    assert!(matches!(other.resume(&registry, cursor.clone()).await, Err(ProducerError::Changed(_))));
    let resumed = producer.resume(&registry, cursor.clone()).await.unwrap();
    assert_eq!(within(resumed.send()).await.unwrap().sent, total);
    let after: Vec<_> = drain(&*transport, QueueRole::Tasks).await.iter().map(first_and_count).collect();
    assert_eq!(after.first(), Some(&(cursor.confirmed.0, 1)));
    assert_eq!(after.last(), Some(&(total - 1, 1)));
    let resumed_seal = seal(&drain(&*transport, QueueRole::Results).await);

    // Once sealed, resuming repeats the seal and nothing else.
    let again = producer.resume(&registry, cursors.load(job).unwrap()).await.unwrap();
    within(again.send()).await.unwrap();
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty());
    assert_eq!(seal(&drain(&*transport, QueueRole::Results).await), resumed_seal);

    let whole: Arc<dyn Transport> = MemoryTransport::new();
    let submission =
        Producer::new(Arc::clone(&whole), "test").open(erase(count(total)), options(100)).await.unwrap();
    within(submission.send()).await.unwrap();
    assert_eq!(seal(&drain(&*whole, QueueRole::Results).await), resumed_seal);
}

#[tokio::test]
async fn batches_of_a_resumed_job_are_sized_by_what_the_sink_knows_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(200_000)), SubmitOptions::default()).await.unwrap();
    let job = submission.id();
    drop(submission); // it has the cursor
    drain(&*transport, QueueRole::Results).await;
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();

    let resumed = producer.resume(&registry, cursors.load(job).unwrap()).await.unwrap();
    // The sink hears of it, and tells what it has: a million tasks of a microsecond.
    assert_eq!(drain(&*transport, QueueRole::Results).await.len(), 1);
    let account = Account { done: 1_000_000, ..Account::default() };
    let progress = Progress { job, account, sealed: false, busy_us: 1_000_000 };
    let to = Address::Events(Topic::Job(Lane::default(), job));
    let message = progress.message("1".into(), "test");
    publish_until_stored(&*transport.publisher().await.unwrap(), vec![Outgoing { to, message }])
        .await
        .unwrap();
    within(resumed.send()).await.unwrap();
    let sizes: Vec<_> =
        drain(&*transport, QueueRole::Tasks).await.iter().map(|message| first_and_count(message).1).collect();
    assert!(sizes.contains(&10_000), "{sizes:?}");
}

#[tokio::test]
async fn while_nothing_is_measured_every_task_travels_alone() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test");
    let submission = producer.open(erase(count(900)), SubmitOptions::default()).await.unwrap();
    within(submission.send()).await.unwrap();
    let batches: Vec<_> = drain(&*transport, QueueRole::Tasks).await.iter().map(first_and_count).collect();
    assert!(batches.iter().map(|(_, count)| *count).eq([1; 900]), "{batches:?}");
}

#[tokio::test]
async fn a_job_whose_split_changed_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(10)), options(1)).await.unwrap();
    let mut cursor = cursors.load(submission.id()).unwrap();
    drop(submission); // it has the cursor
    cursor.confirmed = TaskIndex(5); // with the digest of no tasks
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    let resumed = producer.resume(&registry, cursor).await.unwrap();
    let error = within(resumed.send()).await.unwrap_err();
    assert!(matches!(&error, ProducerError::Changed(why) if why.contains("first 5")), "{error}");
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty());
}

#[tokio::test]
async fn a_watch_sees_the_end_of_the_last_round_only() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let job = JobId::generate();
    let finished = |round, text: &str| Finished {
        job,
        kind: Kind::new("count").unwrap(),
        round: Round(round),
        account: Account::default(),
        conclusion: Conclusion::answer(text),
    };
    let fact = |message| vec![Outgoing { to: Address::Journal, message }];
    let reopened = Reopened { job, round: Round(1) };
    for message in [
        finished(0, "first").message("1".into(), "test"),
        reopened.message("2".into(), "test"),
        finished(0, "first").message("1".into(), "test"),
    ] {
        publish_until_stored(&*publisher, fact(message)).await.unwrap();
    }
    let mut watch = Watch::open(&*transport, job).await.unwrap();
    assert!(
        matches!(within(watch.next()).await.unwrap(), News::CaughtUp),
        "an old round's end was taken for the end"
    );
    publish_until_stored(&*publisher, fact(finished(1, "second").message("3".into(), "test"))).await.unwrap();
    let News::Finished(end) = within(watch.next()).await.unwrap() else { panic!("no end") };
    assert_eq!(end.conclusion.text, "second");
}

#[tokio::test]
async fn cancelling_a_job_that_has_ended_says_so() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let job = JobId::generate();
    let finished = Finished {
        job,
        kind: Kind::new("count").unwrap(),
        round: Round(0),
        account: Account::default(),
        conclusion: Conclusion::answer("done"),
    };
    let message = finished.message("1".into(), "test");
    publish_until_stored(&*publisher, vec![Outgoing { to: Address::Journal, message }]).await.unwrap();
    let told = cancel(&*transport, &Lane::default(), job, None, "late", "test").await.unwrap();
    assert_eq!(told, Cancelling::HadEnded);
    let mut journal = transport.journal().await.unwrap();
    while let JournalEntry::Fact(message) = journal.next().await.unwrap() {
        assert!(!matches!(Fact::decode(&message).unwrap(), Fact::Stopped(Stopped { .. })));
    }
}

#[tokio::test]
async fn cancelling_a_job_that_nobody_knows_tells_nobody() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let told = cancel(&*transport, &Lane::default(), JobId::generate(), None, "typo", "test").await.unwrap();
    assert_eq!(told, Cancelling::Unknown);
    assert!(drain(&*transport, QueueRole::Results).await.is_empty());
}

#[tokio::test]
async fn cancelling_reaches_the_lane_of_the_job_and_not_the_one_at_hand() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let night: Lane = "night".parse().unwrap();
    let options = SubmitOptions { lane: night.clone(), ..SubmitOptions::default() };
    let submission =
        Producer::new(Arc::clone(&transport), "test").open(erase(count(5)), options).await.unwrap();
    let told = cancel(&*transport, &Lane::default(), submission.id(), Some(night.clone()), "no", "test")
        .await
        .unwrap();
    assert_eq!(told, Cancelling::Told);
    assert!(drain(&*transport, QueueRole::Results).await.is_empty());
    let mut consumer = transport.consume(&QueueRole::Results.of(&night), 10).await.unwrap();
    let told = within(consumer.recv(10)).await.unwrap();
    assert!(matches!(ToSink::decode(&told[1].message).unwrap(), ToSink::Cancelled(_)));
}

/// The ranges that are missing from an index on, as first index and number, and how many tasks are in all.
type WhatIsMissing = fn(u64) -> (Vec<(u64, u64)>, u64);

/// A sink that knows only what is missing.
async fn answer_audits(transport: Arc<dyn Transport>, missing: WhatIsMissing) {
    let mut results = consume(&*transport, QueueRole::Results).await;
    let publisher = transport.publisher().await.unwrap();
    loop {
        for delivery in results.recv(1).await.unwrap() {
            if let ToSink::Audit(Audit { job, from }) = ToSink::decode(&delivery.message).unwrap() {
                let (ranges, tasks) = missing(from.0);
                let ranges = ranges.into_iter().map(|(first, count)| (TaskIndex(first), count)).collect();
                let fact = Missing { job, round: Round(1), since_ms: None, from, ranges, tasks };
                let message = fact.message(format!("answer/{from}"), "sink");
                let outgoing = Outgoing { to: Address::Journal, message };
                publish_until_stored(&*publisher, vec![outgoing]).await.unwrap();
            }
            delivery.receipt.ack();
        }
    }
}

/// A job of ten tasks that was sent and sealed, and whose messages are gone.
async fn sent_in_vain(
    transport: &Arc<dyn Transport>,
    cursors: &CursorDir,
) -> (Producer, Registry, gristmill_producer::Cursor) {
    let producer = Producer::new(Arc::clone(transport), "test").cursors(cursors.clone(), "1");
    let submission = producer.open(erase(count(10)), options(2)).await.unwrap();
    let id = submission.id();
    within(submission.send()).await.unwrap();
    drain(&**transport, QueueRole::Tasks).await;
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    (producer, registry, cursors.load(id).unwrap())
}

#[tokio::test]
async fn exactly_what_is_missing_is_sent_again_in_the_present_round() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let (producer, registry, cursor) = sent_in_vain(&transport, &CursorDir::new(dir.path())).await;
    let sink = tokio::spawn(answer_audits(Arc::clone(&transport), |from| match from {
        0 => (vec![(1, 1), (4, 3)], 6),
        7 => (vec![(8, 2)], 2),
        other => panic!("asked from {other} on"),
    }));
    let mut submission = within(producer.resume(&registry, cursor)).await.unwrap();
    let report = within(submission.send_missing()).await.unwrap();
    assert_eq!((report.sent, report.left), (6, 0));
    let sent = drain(&*transport, QueueRole::Tasks).await;
    assert_eq!(sent.iter().map(first_and_count).collect::<Vec<_>>(), [(1, 1), (4, 2), (6, 1), (8, 2)]);
    assert!(sent.iter().all(|message| decode::<Batch<'_>>(message).unwrap().round == Round(1)));
    assert_eq!(within(submission.send()).await.unwrap().end, SplitEnd::Sealed);
    sink.abort();
}

#[tokio::test]
async fn nothing_is_sent_again_of_a_split_that_gives_other_tasks() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let (producer, registry, cursor) = sent_in_vain(&transport, &CursorDir::new(dir.path())).await;
    let sink = tokio::spawn(answer_audits(Arc::clone(&transport), |_| (vec![(0, 10)], 10)));
    let other = gristmill_producer::Cursor { digest: gristmill_shared::SplitDigest::default(), ..cursor };
    let mut submission = within(producer.resume(&registry, other)).await.unwrap();
    let error = within(submission.send_missing()).await.unwrap_err();
    assert!(matches!(error, ProducerError::Changed(_)), "{error}");
    assert!(drain(&*transport, QueueRole::Tasks).await.is_empty());
    sink.abort();
}

#[tokio::test]
async fn what_was_never_sent_is_not_sent_as_missing() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let (producer, registry, cursor) = sent_in_vain(&transport, &CursorDir::new(dir.path())).await;
    let sink = tokio::spawn(answer_audits(Arc::clone(&transport), |_| (vec![(3, 97)], 97)));
    // As after a crash at the very beginning.
    let fresh = gristmill_producer::Cursor {
        confirmed: TaskIndex(0),
        digest: gristmill_shared::SplitDigest::default(),
        sealed: None,
        ..cursor
    };
    let mut submission = within(producer.resume(&registry, fresh)).await.unwrap();
    let report = within(submission.send_missing()).await.unwrap();
    assert_eq!((report.sent, report.left), (0, 0));
    assert_eq!(within(submission.send()).await.unwrap().sent, 10, "it is sent as what is left of the split");
    sink.abort();
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_answers_ends_in_an_error() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let cursors = CursorDir::new(dir.path());
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors, "1");
    let mut submission = producer.open(erase(count(10)), options(2)).await.unwrap();
    let error = submission.send_missing().await.unwrap_err();
    assert!(matches!(error, ProducerError::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("(hint:"), "{error}");
}

#[tokio::test]
async fn a_producer_that_leaves_has_saved_where_it_is() {
    let (transport, dir) = (MemoryTransport::new() as Arc<dyn Transport>, tempfile::tempdir().unwrap());
    let cursors = CursorDir::new(dir.path());
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    // More batches than the queue takes.
    let submission = producer.open(erase(count(5_000)), options(1)).await.unwrap();
    let id = submission.id();
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    let full = async {
        while cursors.load(id).unwrap().confirmed.0 < TASKS_MAX_MESSAGES {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let second = producer.resume(&registry, cursors.load(id).unwrap()).await;
        assert!(second.unwrap_err().to_string().contains("another producer is sending"));
    };
    let report = within(submission.send_until(full)).await.unwrap();
    assert_eq!((report.end, report.sent), (SplitEnd::Interrupted, TASKS_MAX_MESSAGES));
    assert_eq!(cursors.load(id).unwrap().confirmed.0, report.sent);
}
