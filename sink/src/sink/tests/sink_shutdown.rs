//! How a sink ends: it leaves, loses its broker or its ledger, or is dropped.

use std::future::pending;

use async_trait::async_trait;
use gristmill_shared::{Capabilities, EventFilter, EventReader, JournalReader, Shards, TransportError};

use super::*;
use crate::tests::toy_jobs::Submitted;

#[tokio::test]
async fn a_sink_leaves_while_it_starts_too() {
    let dir = tempfile::tempdir().unwrap();
    let sink = Sink::open(config(&dir.path().join("ledger"))).unwrap();
    let stuck: Arc<dyn Transport> = Arc::new(Stuck);
    let report = timeout(PATIENCE, sink.run_until(stuck, tokio::time::sleep(Duration::from_millis(1)))).await;
    assert_eq!(report.expect("it did not leave").unwrap(), SinkReport::default());
}

/// A broker that answers nothing.
#[derive(Debug)]
struct Stuck;

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stuck")
    }
}

#[async_trait]
impl Transport for Stuck {
    fn capabilities(&self) -> Capabilities {
        MemoryTransport::new().capabilities()
    }
    async fn open_lane(&self, _: &Lane) -> Result<(), TransportError> {
        pending().await
    }
    async fn open_shards(&self, _: &Lane, _: Shards) -> Result<Shards, TransportError> {
        pending().await
    }
    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        pending().await
    }
    async fn consume(&self, _: &Queue, _: u16) -> Result<Box<dyn Consumer>, TransportError> {
        pending().await
    }
    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        pending().await
    }
    async fn events(&self, _: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        pending().await
    }
    fn health(&self) -> tokio::sync::watch::Receiver<gristmill_shared::Health> {
        MemoryTransport::new().health()
    }
    async fn close(&self) {}
}

#[tokio::test]
async fn a_lost_broker_ends_the_sink_and_costs_nothing() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let ledger = dir.path().join("ledger");
    publish(&transport, [job.opened()].into_iter().chain((0..200).map(|index| job.done(index..index + 1))))
        .await;
    let connection = transport.connect();
    let sink = Running::start(config(&ledger), &connection);
    journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
    connection.close().await;
    let error = Running::wait(sink.end).await.unwrap_err();
    let lost =
        matches!(error, SinkError::Transport(TransportError::Disconnected { .. }) | SinkError::Store(_));
    assert!(lost, "{error}");
    // The ledger is free at once, and what was not acknowledged comes again.
    let sink = Running::start(config(&ledger), &transport);
    publish(&transport, [job.sealed(200)]).await;
    let finished = finished(&transport, job.id).await;
    assert_eq!((finished.account.done, &*finished.conclusion.text), (200, "19900 from 200 tasks"));
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn a_ledger_that_fails_ends_the_sink_and_acknowledges_nothing() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let ledger = dir.path().join("ledger");
    let sink = Sink::open(config(&ledger)).unwrap();
    let full =
        sink.ledger.read("", |connection| connection.query_row("PRAGMA max_page_count = 1", [], |_| Ok(())));
    full.unwrap();
    let sink = Running::run(sink, &transport);
    let many = (0..300).map(|_| Submitted::toy().opened());
    publish(&transport, [job.opened(), job.done(0..7), job.sealed(7)].into_iter().chain(many)).await;
    let error = Running::wait(sink.end).await.unwrap_err();
    assert!(matches!(error, SinkError::Ledger { .. }), "{error}");
    let sink = Running::start(config(&ledger), &transport);
    assert_eq!(finished(&transport, job.id).await.account.duplicates, 0);
    assert!(sink.stop().await.unwrap().messages >= 3);
}

#[tokio::test]
async fn leaving_finishes_what_was_begun_so_that_nothing_comes_twice() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let ledger = dir.path().join("ledger");
    publish(&transport, [job.opened()].into_iter().chain((0..2_000).map(|index| job.done(index..index + 1))))
        .await;
    for _ in 0..3 {
        let sink = Running::start(config(&ledger), &transport);
        journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
        sink.stop().await.unwrap();
    }
    let sink = Running::start(config(&ledger), &transport);
    publish(&transport, [job.sealed(2_000)]).await;
    let account = finished(&transport, job.id).await.account;
    assert_eq!((account.done, account.duplicates), (2_000, 0));
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn dropping_the_sink_commits_what_it_was_given() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let ledger = dir.path().join("ledger");
    let sink = Running::start(config(&ledger), &transport);
    publish(&transport, [job.opened(), job.done(0..7)]).await;
    journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
    sink.end.abort();
    until("the ledger to be free", || !matches!(Sink::open(config(&ledger)), Err(SinkError::Held { .. })))
        .await;
    let sink = Running::start(config(&ledger), &transport);
    publish(&transport, [job.sealed(7)]).await;
    assert_eq!(finished(&transport, job.id).await.conclusion.text, "21 from 7 tasks");
    sink.stop().await.unwrap();
}
