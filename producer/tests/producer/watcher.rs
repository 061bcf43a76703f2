//! Watching and cancelling a job.

use std::{ops::ControlFlow, sync::Arc};

use gristmill_producer::{CancelOutcome, JobUpdate, JobWatcher, Producer, SubmitOptions, cancel};
use gristmill_shared::{
    Account, Address, Conclusion, Job, JobError, JobId, JournalEntry, Kind, Lane, Outgoing, QueueRole, Round,
    TaskContext, TaskError, TaskIndex, Transport, erase,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{Fact, FailureNote, Finished, Reopened, SinkMessage, Stopped, WireMessage},
};
use serde_json::value::RawValue;

use crate::harness::{count, drain, within};

#[tokio::test]
async fn watch_returns_last_round_end() {
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
        builds: Vec::new(),
        report: None,
        report_bytes: None,
        failures: Vec::new(),
    };
    let fact = |message| vec![Outgoing { to: Address::Journal, message }];
    let reopened = Reopened { job, round: Round(1), version: 0 };
    for message in [
        finished(0, "first").message("1".into(), "test"),
        reopened.message("2".into(), "test"),
        finished(0, "first").message("1".into(), "test"),
    ] {
        publish_until_stored(&*publisher, fact(message)).await.unwrap();
    }
    let mut watch = JobWatcher::open(&*transport, job).await.unwrap();
    assert!(matches!(within(watch.next()).await.unwrap(), JobUpdate::Reopened(Round(1))));
    assert!(
        matches!(within(watch.next()).await.unwrap(), JobUpdate::CaughtUp),
        "an old round's end was taken for the end"
    );
    publish_until_stored(&*publisher, fact(finished(1, "second").message("3".into(), "test"))).await.unwrap();
    let JobUpdate::Finished(end) = within(watch.next()).await.unwrap() else { panic!("no end") };
    assert_eq!(end.conclusion.text, "second");
}

/// A job whose report may be null.
#[derive(serde::Serialize, serde::Deserialize)]
struct Silent;

impl Job for Silent {
    const KIND: &'static str = "silent";
    type Task = ();
    type Output = ();
    type Report = Option<u64>;

    fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, (): (), _: &TaskContext) -> Result<(), TaskError> {
        Ok(())
    }
    fn collect(&self, _: &mut Option<u64>, _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[tokio::test]
async fn watch_returns_typed_report() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let watch_finished = async |kind: &str, report: Option<&str>, report_bytes| {
        let finished = Finished {
            job: JobId::generate(),
            kind: Kind::new(kind).unwrap(),
            round: Round(0),
            account: Account::default(),
            conclusion: Conclusion::answer("done"),
            report: report.map(|report| RawValue::from_string(report.into()).unwrap()),
            report_bytes,
            failures: vec![FailureNote { index: TaskIndex(7), reason: "cold".into() }],
            builds: Vec::new(),
        };
        let message = finished.message(finished.job.to_string(), "test");
        publish_until_stored(&*publisher, vec![Outgoing { to: Address::Journal, message }]).await.unwrap();
        JobWatcher::open(&*transport, finished.job).await.unwrap()
    };
    let mut watch = watch_finished("silent", Some("42"), None).await;
    assert_eq!(within(watch.report::<Silent>()).await.unwrap(), Some(42));
    let outcome = within(watch.outcome::<Silent>()).await.unwrap(); // again, after the end
    assert_eq!((outcome.report, outcome.failures[&TaskIndex(7)].as_str()), (Some(42), "cold"));
    // A report that is null is a report.
    assert_eq!(
        within(watch_finished("silent", Some("null"), None).await.report::<Silent>()).await.unwrap(),
        None
    );

    for (kind, report, bytes, why) in [
        ("silent", None, Some(300_000), "takes 300000 bytes, more than the journal carries"),
        ("silent", None, None, "ended without a report: done"),
        ("silent", Some("\"42\""), None, "does not fit kind silent"),
        ("loud", Some("42"), None, "is of kind loud, not silent"),
    ] {
        let error = within(watch_finished(kind, report, bytes).await.outcome::<Silent>()).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn cancel_after_end_is_reported() {
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
        builds: Vec::new(),
        report: None,
        report_bytes: None,
        failures: Vec::new(),
    };
    let message = finished.message("1".into(), "test");
    publish_until_stored(&*publisher, vec![Outgoing { to: Address::Journal, message }]).await.unwrap();
    let outcome = cancel(&*transport, &Lane::default(), job, None, "late", "test").await.unwrap();
    assert_eq!(outcome, CancelOutcome::AlreadyEnded);
    let mut journal = transport.journal().await.unwrap();
    while let JournalEntry::Fact(message) = journal.next().await.unwrap() {
        assert!(!matches!(Fact::decode(&message).unwrap(), Fact::Stopped(Stopped { .. })));
    }
}

#[tokio::test]
async fn cancel_of_unknown_job_sends_nothing() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let outcome =
        cancel(&*transport, &Lane::default(), JobId::generate(), None, "typo", "test").await.unwrap();
    assert_eq!(outcome, CancelOutcome::UnknownJob);
    assert!(drain(&*transport, QueueRole::Results).await.is_empty());
}

/// A cancellation goes to the lane of the job, not to the lane at hand.
#[tokio::test]
async fn cancel_uses_lane_of_job() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let night: Lane = "night".parse().unwrap();
    let options = SubmitOptions { lane: night.clone(), ..SubmitOptions::default() };
    let submission =
        Producer::new(Arc::clone(&transport), "test").open(erase(count(5)), options).await.unwrap();
    let outcome = cancel(&*transport, &Lane::default(), submission.id(), Some(night.clone()), "no", "test")
        .await
        .unwrap();
    assert_eq!(outcome, CancelOutcome::Broadcast);
    assert!(drain(&*transport, QueueRole::Results).await.is_empty());
    let mut consumer = transport.consume(&QueueRole::Results.of(&night), 10).await.unwrap();
    let messages = within(consumer.recv(10)).await.unwrap();
    assert!(matches!(SinkMessage::decode(&messages[1].message).unwrap(), SinkMessage::Cancelled(_)));
}
