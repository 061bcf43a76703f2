//! Ends of a sink: it is stopped, loses its broker or its ledger, or is dropped.

use std::future::pending;

use async_trait::async_trait;
use gristmill_shared::{Capabilities, EventFilter, EventReader, JournalReader, Shards, TransportError};

use super::*;
use crate::tests::toy_jobs::SubmittedJob;

#[tokio::test]
async fn sink_stops_while_starting() {
    let dir = tempfile::tempdir().unwrap();
    let sink = config(&dir.path().join("ledger")).open().unwrap();
    let stuck: Arc<dyn Transport> = Arc::new(StuckTransport);
    let report = timeout(WAIT_MAX, sink.run_until(stuck, tokio::time::sleep(Duration::from_millis(1)))).await;
    assert_eq!(report.expect("it did not leave").unwrap(), SinkReport::default());
}

/// A broker that never answers.
#[derive(Debug)]
struct StuckTransport;

impl fmt::Display for StuckTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stuck")
    }
}

#[async_trait]
impl Transport for StuckTransport {
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
async fn lost_broker_loses_no_result() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let ledger = dir.path().join("ledger");
    publish(&transport, [job.opened()].into_iter().chain((0..200).map(|index| job.done(index..index + 1))))
        .await;
    let connection = transport.connect();
    let sink = RunningSink::start(config(&ledger), &connection);
    journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
    connection.close().await;
    let error = RunningSink::wait(sink.end).await.unwrap_err();
    let lost =
        matches!(error, SinkError::Transport(TransportError::Disconnected { .. }) | SinkError::Store(_));
    assert!(lost, "{error}");
    // The ledger is free at once, and unacknowledged messages are redelivered.
    let sink = RunningSink::start(config(&ledger), &transport);
    publish(&transport, [job.sealed(200)]).await;
    let finished = finished(&transport, job.id).await;
    assert_eq!((finished.account.done, &*finished.conclusion.text), (200, "19900 from 200 tasks"));
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn failed_ledger_acks_nothing() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let ledger = dir.path().join("ledger");
    let mut full = SqliteLedger::open(LedgerLocation::File(ledger.clone())).unwrap();
    full.fill().unwrap();
    let sink = config(&ledger).open_on(Box::new(full)).unwrap();
    let sink = RunningSink::run(sink, &transport);
    let many = (0..300).map(|_| SubmittedJob::toy().opened());
    publish(&transport, [job.opened(), job.done(0..7), job.sealed(7)].into_iter().chain(many)).await;
    let error = RunningSink::wait(sink.end).await.unwrap_err();
    assert!(matches!(error, SinkError::Ledger(LedgerError::Storage { .. })), "{error}");
    let sink = RunningSink::start(config(&ledger), &transport);
    assert_eq!(finished(&transport, job.id).await.account.duplicates, 0);
    assert!(sink.stop().await.unwrap().messages >= 3);
}

/// Shutdown commits and acknowledges what was received, so that nothing is redelivered.
#[tokio::test]
async fn shutdown_causes_no_duplicates() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let ledger = dir.path().join("ledger");
    publish(&transport, [job.opened()].into_iter().chain((0..2_000).map(|index| job.done(index..index + 1))))
        .await;
    for _ in 0..3 {
        let sink = RunningSink::start(config(&ledger), &transport);
        journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
        sink.stop().await.unwrap();
    }
    let sink = RunningSink::start(config(&ledger), &transport);
    publish(&transport, [job.sealed(2_000)]).await;
    let account = finished(&transport, job.id).await.account;
    assert_eq!((account.done, account.duplicates), (2_000, 0));
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn dropped_sink_commits_its_input() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), SubmittedJob::toy());
    let ledger = dir.path().join("ledger");
    let sink = RunningSink::start(config(&ledger), &transport);
    publish(&transport, [job.opened(), job.done(0..7)]).await;
    journal_until(&transport, |fact| matches!(fact, Fact::Opened(_))).await;
    sink.end.abort();
    until("the ledger to be free", || {
        !matches!(config(&ledger).open(), Err(SinkError::Ledger(LedgerError::Locked { .. })))
    })
    .await;
    let sink = RunningSink::start(config(&ledger), &transport);
    publish(&transport, [job.sealed(7)]).await;
    assert_eq!(finished(&transport, job.id).await.conclusion.text, "21 from 7 tasks");
    sink.stop().await.unwrap();
}
