//! Which ledger a lane belongs to.

use super::*;
use crate::tests::toy_jobs::{Submitted, app, garbage};

#[tokio::test]
async fn a_lane_belongs_to_one_ledger() {
    let (transport, dir) = (MemoryTransport::new(), tempfile::tempdir().unwrap());
    let [ours, theirs] = ["ours", "theirs"].map(|name| config(&dir.path().join(name)));
    let sink = Running::start(ours.clone(), &transport);
    let serving = journal_until(&transport, |fact| matches!(fact, Fact::Serving(_))).await;
    assert_eq!(serving.len(), 1);

    let error = Running::wait(Running::start(theirs.clone(), &transport).end).await.unwrap_err();
    assert!(matches!(error, SinkError::OtherLedger { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("ours of toy") && text.contains("--adopt"), "{text}");

    // With another lane there is nothing to quarrel about.
    let elsewhere = SinkConfig { lane: Lane::new("night").unwrap(), ..theirs.clone() };
    Running::start(elsewhere, &transport).stop().await.unwrap();

    // Adopting takes the lane over, and the other one leaves.
    let adopting = Running::start(SinkConfig { adopt: true, ..theirs.clone() }, &transport);
    let error = Running::wait(sink.end).await.unwrap_err();
    assert!(matches!(error, SinkError::TakenOver { .. }), "{error}");
    adopting.stop().await.unwrap();
    let error = Running::wait(Running::start(ours.clone(), &transport).end).await.unwrap_err();
    assert!(matches!(error, SinkError::OtherLedger { .. }), "{error}");

    // The one that has the lane claims it again when it starts, and notices a takeover still.
    let before = claims(&transport).await;
    let again = Running::start(theirs, &transport);
    let claimed = async {
        while claims(&transport).await == before {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, claimed).await.expect("it did not claim its lane");
    let adopting = Running::start(SinkConfig { adopt: true, ..ours }, &transport);
    let error = Running::wait(again.end).await.unwrap_err();
    assert!(matches!(error, SinkError::TakenOver { .. }), "{error}");
    adopting.stop().await.unwrap();
}

/// How many claims on lanes stand in the journal.
async fn claims(transport: &MemoryTransport) -> usize {
    let mut journal = transport.journal().await.unwrap();
    let mut claims = 0;
    while let JournalEntry::Fact(message) = journal.next().await.unwrap() {
        claims += usize::from(matches!(Fact::decode(&message), Ok(Fact::Serving(_))));
    }
    claims
}

#[tokio::test]
async fn a_lane_that_is_only_claimed_keeps_its_messages() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let [ours, theirs] = ["ours", "theirs"].map(|name| Sink::open(config(&dir.path().join(name))).unwrap());
    let claimed = ours.claim(Arc::clone(&transport) as _).await.unwrap();
    let error = theirs.claim(Arc::clone(&transport) as _).await.unwrap_err();
    assert!(matches!(error, SinkError::OtherLedger { .. }), "{error}");
    publish(&transport, [job.opened(), job.sealed(0)]).await;
    assert_eq!(waiting(&transport, &QueueRole::Results.of(&Lane::default())).await, 2);
    let (shutdown, asked) = oneshot::channel();
    let end = tokio::spawn(claimed.run_until(async move { drop(asked.await) }));
    finished(&transport, job.id).await;
    let report = Running { shutdown, end }.stop().await.unwrap();
    assert_eq!((report.messages, report.jobs_ended), (2, 1));
}

#[tokio::test]
async fn what_a_ledger_has_to_send_on_another_lane_is_sent_there() {
    let (dir, night) = (tempfile::tempdir().unwrap(), Lane::new("night").unwrap());
    let ledger = dir.path().join("ledger");
    let on_night = SinkConfig { lane: night.clone(), ..config(&ledger) };
    let sink = Sink::open(on_night.clone()).unwrap();
    let mut clerk = Clerk::new(sink.ledger, on_night.registry, night.clone(), app());
    clerk.take(crate::tests::toy_jobs::delivery(garbage())).unwrap();
    drop(clerk.commit().unwrap());

    let transport = MemoryTransport::new();
    let sink = Running::start(config(&ledger), &transport);
    let queue = QueueRole::Dead.of(&night);
    let made = async {
        loop {
            match transport.consume(&queue, 1).await {
                Ok(dead) => return dead,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut dead = timeout(PATIENCE, made).await.expect("the sink did not make the lane");
    let delivery = timeout(PATIENCE, dead.recv(1)).await.expect("it was not sent").unwrap().remove(0);
    assert_eq!(delivery.message.body, garbage().body);
    sink.stop().await.unwrap();
}
