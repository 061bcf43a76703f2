//! Tests of the sink on the memory transport: its input, its output and its end.

mod announcing;
mod incompatible_jobs;
mod lane_ownership;
mod messages_in;
mod sink_shutdown;
mod value_bits;

use std::{path::Path, time::Duration};

use gristmill_ledger::{LedgerError, LedgerLocation};
use gristmill_shared::{
    Address, JobId, JournalEntry, Message, Outgoing, Published, Queue,
    memory::MemoryTransport,
    wire::{Fact, Finished},
};
use gristmill_sqlite::SqliteLedger;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::*;
use crate::tests::toy_jobs::{app, read_ledger, registry};

/// Time within which an awaited event arrives, or the test fails.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// The settings of a sink, with the location of its ledger.
#[derive(Clone)]
struct TestConfig {
    registry: Registry,
    lane: Lane,
    adopt: bool,
    ledger: LedgerLocation,
    stall_after: Option<Duration>,
}

impl TestConfig {
    fn open(self) -> Result<Sink, SinkError> {
        let ledger = SqliteLedger::open(self.ledger.clone())?;
        self.open_on(Box::new(ledger))
    }

    fn open_on(self, ledger: Box<dyn Ledger>) -> Result<Sink, SinkError> {
        let Self { registry, lane, adopt, stall_after, .. } = self;
        Sink::open(SinkConfig { registry, lane, adopt, app: app(), stall_after }, ledger)
    }
}

fn config(ledger: &Path) -> TestConfig {
    let ledger = LedgerLocation::File(ledger.into());
    TestConfig { registry: registry(), lane: Lane::default(), adopt: false, ledger, stall_after: None }
}

fn in_memory() -> TestConfig {
    TestConfig { ledger: LedgerLocation::Memory, ..config(Path::new("")) }
}

/// A running sink.
struct RunningSink {
    shutdown: oneshot::Sender<()>,
    end: JoinHandle<Result<SinkReport, SinkError>>,
}

impl RunningSink {
    fn start(config: TestConfig, transport: &Arc<MemoryTransport>) -> Self {
        Self::run(config.open().unwrap(), transport)
    }

    fn run(sink: Sink, transport: &Arc<MemoryTransport>) -> Self {
        let (shutdown, asked) = oneshot::channel();
        let transport: Arc<dyn Transport> = Arc::clone(transport) as _;
        let end = tokio::spawn(sink.run_until(transport, async move { drop(asked.await) }));
        Self { shutdown, end }
    }

    async fn stop(self) -> Result<SinkReport, SinkError> {
        let _ = self.shutdown.send(());
        Self::wait(self.end).await
    }

    async fn wait(end: JoinHandle<Result<SinkReport, SinkError>>) -> Result<SinkReport, SinkError> {
        timeout(WAIT_MAX, end).await.expect("the sink did not end in time").unwrap()
    }
}

async fn publish(transport: &MemoryTransport, messages: impl IntoIterator<Item = Message>) {
    transport.open_lane(&Lane::default()).await.unwrap();
    let to = Address::Queue(QueueRole::Results.of(&Lane::default()));
    let outgoing = messages.into_iter().map(|message| Outgoing { to: to.clone(), message });
    let answers = transport.publisher().await.unwrap().publish(outgoing.collect()).await;
    assert!(answers.iter().all(|answer| *answer == Published::Confirmed), "{answers:?}");
}

/// Returns all facts in the journal up to the first that `is_last`.
async fn journal_until(
    transport: &MemoryTransport,
    is_last: impl Fn(&Fact) -> bool + Send + Sync,
) -> Vec<Fact> {
    let mut journal = transport.journal().await.unwrap();
    let mut facts = Vec::new();
    let read = async {
        loop {
            if let JournalEntry::Fact(message) = journal.next().await.unwrap() {
                let fact = Fact::decode(&message).unwrap();
                let last = is_last(&fact);
                facts.push(fact);
                if last {
                    return;
                }
            }
        }
    };
    timeout(WAIT_MAX, read).await.expect("the fact did not come in time");
    facts
}

async fn finished(transport: &MemoryTransport, job: JobId) -> Finished {
    let is_it = |fact: &Fact| matches!(fact, Fact::Finished(finished) if finished.job == job);
    match journal_until(transport, is_it).await.pop() {
        Some(Fact::Finished(finished)) => finished,
        other => panic!("{other:?}"),
    }
}

/// Counts the messages that are ready in a queue, or no longer held by a consumer.
async fn waiting(transport: &MemoryTransport, queue: &Queue) -> usize {
    let mut consumer = transport.consume(queue, u16::MAX).await.unwrap();
    let mut count = 0;
    while let Ok(deliveries) = timeout(Duration::from_millis(50), consumer.recv(usize::MAX)).await {
        count += deliveries.unwrap().len();
    }
    count
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let wait = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT_MAX, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}
