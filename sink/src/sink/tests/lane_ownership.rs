//! Ownership of a lane by one ledger.

use super::*;
use crate::tests::toy_jobs::{SubmittedJob, app, garbage};

#[tokio::test]
async fn lane_belongs_to_one_ledger() {
    let (transport, dir) = (MemoryTransport::new(), tempfile::tempdir().unwrap());
    let [ours, theirs] = ["ours", "theirs"].map(|name| config(&dir.path().join(name)));
    let sink = RunningSink::start(ours.clone(), &transport);
    let serving = journal_until(&transport, |fact| matches!(fact, Fact::Serving(_))).await;
    assert_eq!(serving.len(), 1);

    let error = RunningSink::wait(RunningSink::start(theirs.clone(), &transport).end).await.unwrap_err();
    assert!(matches!(error, SinkError::LaneClaimed { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("ours of toy") && text.contains("--adopt"), "{text}");

    // Another lane is no conflict.
    let elsewhere = TestConfig { lane: Lane::new("night").unwrap(), ..theirs.clone() };
    RunningSink::start(elsewhere, &transport).stop().await.unwrap();

    // Adopting takes the lane over, and the other sink leaves.
    let adopting = RunningSink::start(TestConfig { adopt: true, ..theirs.clone() }, &transport);
    let error = RunningSink::wait(sink.end).await.unwrap_err();
    assert!(matches!(error, SinkError::TakenOver { .. }), "{error}");
    adopting.stop().await.unwrap();
    let error = RunningSink::wait(RunningSink::start(ours.clone(), &transport).end).await.unwrap_err();
    assert!(matches!(error, SinkError::LaneClaimed { .. }), "{error}");

    // The owner claims its lane again when it starts, and still notices a takeover.
    let before = claims(&transport).await;
    let again = RunningSink::start(theirs, &transport);
    let claimed = async {
        while claims(&transport).await == before {
            tokio::task::yield_now().await;
        }
    };
    timeout(WAIT_MAX, claimed).await.expect("it did not claim its lane");
    let adopting = RunningSink::start(TestConfig { adopt: true, ..ours }, &transport);
    let error = RunningSink::wait(again.end).await.unwrap_err();
    assert!(matches!(error, SinkError::TakenOver { .. }), "{error}");
    adopting.stop().await.unwrap();
}

/// Counts the claims on lanes in the journal.
async fn claims(transport: &MemoryTransport) -> usize {
    let mut journal = transport.journal().await.unwrap();
    let mut claims = 0;
    while let JournalEntry::Fact(message) = journal.next().await.unwrap() {
        claims += usize::from(matches!(Fact::decode(&message), Ok(Fact::Serving(_))));
    }
    claims
}

#[tokio::test]
async fn claimed_lane_keeps_messages() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let [ours, theirs] = ["ours", "theirs"].map(|name| config(&dir.path().join(name)).open().unwrap());
    let claimed = ours.claim(Arc::clone(&transport) as _).await.unwrap();
    let error = theirs.claim(Arc::clone(&transport) as _).await.unwrap_err();
    assert!(matches!(error, SinkError::LaneClaimed { .. }), "{error}");
    publish(&transport, [job.opened(), job.sealed(0)]).await;
    assert_eq!(waiting(&transport, &QueueRole::Results.of(&Lane::default())).await, 2);
    let (shutdown, asked) = oneshot::channel();
    let end = tokio::spawn(claimed.run_until(async move { drop(asked.await) }));
    finished(&transport, job.id).await;
    let report = RunningSink { shutdown, end }.stop().await.unwrap();
    assert_eq!((report.messages, report.jobs_ended), (2, 1));
}

/// Outbox rows for another lane are published there.
#[tokio::test]
async fn outbox_rows_keep_their_lane() {
    let (dir, night) = (tempfile::tempdir().unwrap(), Lane::new("night").unwrap());
    let ledger = dir.path().join("ledger");
    let on_night = TestConfig { lane: night.clone(), ..config(&ledger) };
    let sink = on_night.clone().open().unwrap();
    let mut engine = LedgerEngine::new(sink.ledger, on_night.registry, night.clone(), app());
    engine.accept_result(crate::tests::toy_jobs::delivery(garbage())).unwrap();
    drop(engine.commit().unwrap());

    let transport = MemoryTransport::new();
    let sink = RunningSink::start(config(&ledger), &transport);
    let queue = QueueRole::Dead.of(&night);
    let made = async {
        loop {
            match transport.consume(&queue, 1).await {
                Ok(dead) => return dead,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut dead = timeout(WAIT_MAX, made).await.expect("the sink did not make the lane");
    let delivery = timeout(WAIT_MAX, dead.recv(1)).await.expect("it was not sent").unwrap().remove(0);
    assert_eq!(delivery.message.body, garbage().body);
    sink.stop().await.unwrap();
}
