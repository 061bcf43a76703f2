//! Events and facts that a sink publishes about its jobs.

use gristmill_shared::{
    EventFilter,
    wire::{Event, WireMessage},
};

use super::*;
use crate::tests::toy_jobs::{SubmittedJob, ToyJob};

#[tokio::test]
async fn progress_and_early_end_are_sent() {
    let (transport, job) =
        (MemoryTransport::new(), SubmittedJob::new(&ToyJob { stop_at: Some(4), ..ToyJob::default() }));
    let config = in_memory();
    let mut events = transport.events(EventFilter::Job(job.id)).await.unwrap();
    let sink = RunningSink::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..5)]).await;
    let last = async {
        loop {
            if let Event::Progress(progress) = Event::decode(&events.next().await.unwrap()).unwrap()
                && progress.account.stopped.is_some()
            {
                return progress;
            }
        }
    };
    assert_eq!(timeout(WAIT_MAX, last).await.expect("no such event").account.done, 5);
    let facts = journal_until(&transport, |fact| matches!(fact, Fact::Finished(_))).await;
    assert!(matches!(&facts[..], [Fact::Serving(_), Fact::Opened(_), Fact::Stopped(_), Fact::Finished(_)]));
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn end_event_equals_fact() {
    let (transport, job) = (MemoryTransport::new(), SubmittedJob::toy());
    let config = in_memory();
    let mut events = transport.events(EventFilter::Job(job.id)).await.unwrap();
    let mut journal = transport.journal().await.unwrap();
    let sink = RunningSink::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..5), job.sealed(5)]).await;
    let both = async {
        let live = loop {
            let event = events.next().await.unwrap();
            if event.form == Finished::TYPE {
                break event;
            }
        };
        loop {
            match journal.next().await.unwrap() {
                JournalEntry::Fact(fact) if fact.form == Finished::TYPE => return (live, fact),
                _ => {}
            }
        }
    };
    let (live, fact) = timeout(WAIT_MAX, both).await.expect("one of them did not come");
    assert_eq!((&live.id, live.job, &live.body), (&fact.id, fact.job, &fact.body));
    assert!(!fact.id.is_empty());
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn stall_is_published_when_idle() {
    let (transport, job) = (MemoryTransport::new(), SubmittedJob::toy());
    let after = Some(Duration::from_millis(30));
    let config = TestConfig { stall_after: after, ..in_memory() };
    let mut events = transport.events(EventFilter::Job(job.id)).await.unwrap();
    let sink = RunningSink::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..5), job.sealed(8)]).await;
    let stalled = async {
        loop {
            if let Event::Missing(missing) = Event::decode(&events.next().await.unwrap()).unwrap() {
                return missing;
            }
        }
    };
    let event = timeout(WAIT_MAX, stalled).await.expect("no such event");
    let facts = journal_until(&transport, |fact| matches!(fact, Fact::Missing(_))).await;
    let Some(Fact::Missing(missing)) = facts.last() else { panic!("{facts:?}") };
    assert_eq!((missing, &missing.ranges[..]), (&event, &[(gristmill_shared::TaskIndex(5), 3)][..]));
    publish(&transport, [job.done(5..8)]).await;
    assert_eq!(finished(&transport, job.id).await.account.done, 8);
    sink.stop().await.unwrap();
}
