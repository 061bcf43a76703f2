//! A producer that submits many jobs: their shared state, and the end of each.

use std::{
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use gristmill_producer::{JobUpdate, JobWatcher, Producer, Submission, SubmitOptions};
use gristmill_shared::{
    Account, Address, Conclusion, EventFilter, EventReader, FACTS_MAX_WAITING, Job, JobError, JobId,
    JournalReader, Kind, Lane, Outgoing, Plan, Round, TaskContext, TaskError, TaskIndex, Topic, Transport,
    TransportError, erase,
    memory::MemoryTransport,
    publish_until_stored,
    testing::TransportDecorator,
    wire::{Finished, Reopened, WireMessage},
};
use serde::{Deserialize, Serialize};

use crate::harness::within;

/// A job of one task.
#[derive(Serialize, Deserialize)]
struct One;

impl Job for One {
    const KIND: &'static str = "one";
    type Task = u64;
    type Output = ();
    type Report = ();

    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::of(1)) // not worth measuring: no job subscribes to events of its own
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::once(Ok(0))
    }
    fn process(&self, _: u64, _: &TaskContext) -> Result<(), TaskError> {
        Ok(())
    }
    fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A transport that counts what is opened.
#[derive(Debug)]
struct CountingTransport {
    inner: Arc<MemoryTransport>,
    lanes: AtomicUsize,
    journals: AtomicUsize,
    events: AtomicUsize,
    /// True if subscriptions to events are refused.
    events_forbidden: bool,
}

impl CountingTransport {
    fn new() -> Arc<Self> {
        Self::with_events_forbidden(false)
    }

    fn with_events_forbidden(events_forbidden: bool) -> Arc<Self> {
        let [lanes, journals, events] = [0; 3].map(AtomicUsize::new);
        Arc::new(Self { inner: MemoryTransport::new(), lanes, journals, events, events_forbidden })
    }

    /// Returns how often a lane, the journal and the events were opened.
    fn opened(&self) -> [usize; 3] {
        [&self.lanes, &self.journals, &self.events].map(|number| number.load(Ordering::Relaxed))
    }
}

impl fmt::Display for CountingTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl TransportDecorator for CountingTransport {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        self.lanes.fetch_add(1, Ordering::Relaxed);
        self.inner.open_lane(lane).await
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        self.journals.fetch_add(1, Ordering::Relaxed);
        self.inner.journal().await
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        self.events.fetch_add(1, Ordering::Relaxed);
        if self.events_forbidden {
            let (transport, lacks) = (self.to_string(), "the right to listen".into());
            return Err(TransportError::PermissionDenied { transport, lacks });
        }
        self.inner.events(filter).await
    }
}

async fn submit(producer: &Producer) -> (Submission, JobWatcher) {
    within(producer.open_watched(erase(One), SubmitOptions::default())).await.unwrap()
}

/// Writes into the journal as a sink does.
async fn publish_fact(transport: &dyn Transport, fact: impl WireMessage) {
    publish_to(transport, Address::Journal, fact).await;
}

/// Publishes the end of a job as an event, and writes nothing into the journal.
async fn publish_live_end(transport: &dyn Transport, finished: Finished) {
    let topic = Topic::Job(Lane::default(), finished.job);
    publish_to(transport, Address::Events(topic), finished).await;
}

async fn publish_to(transport: &dyn Transport, to: Address, fact: impl WireMessage) {
    let publisher = transport.publisher().await.unwrap();
    let message = fact.message(JobId::generate().to_string(), "test");
    publish_until_stored(&*publisher, vec![Outgoing { to, message }]).await.unwrap();
}

fn finished(job: JobId, round: u32, text: &str) -> Finished {
    let (kind, conclusion) = (Kind::new("one").unwrap(), Conclusion::answer(text));
    Finished {
        job,
        kind,
        round: Round(round),
        account: Account::default(),
        conclusion,
        report: None,
        report_bytes: None,
        failures: Vec::new(),
        builds: Vec::new(),
    }
}

/// Jobs share a lane and a reader of the journal, and each watch gets the end of its own job.
#[tokio::test]
async fn jobs_share_lane_and_reader() {
    let transport = CountingTransport::new();
    let producer = Producer::new(Arc::clone(&transport) as _, "test");
    let (first, mut first_watch) = submit(&producer).await;
    let (second, mut second_watch) = submit(&producer.clone()).await;
    let (a, b) = (first.id(), second.id());
    within(first.send()).await.unwrap();
    within(second.send()).await.unwrap();
    publish_fact(&*transport, finished(b, 0, "of the second")).await;
    publish_fact(&*transport, finished(a, 0, "of the first")).await;
    assert_eq!(within(first_watch.finished()).await.unwrap().conclusion.text, "of the first");
    assert_eq!(within(second_watch.finished()).await.unwrap().conclusion.text, "of the second");
    assert_eq!(transport.opened(), [1, 1, 1]);
}

#[tokio::test]
async fn live_end_precedes_journal() {
    let transport = CountingTransport::new();
    let producer = Producer::new(Arc::clone(&transport) as _, "test");
    let (first, mut first_watch) = submit(&producer).await;
    let (second, mut second_watch) = submit(&producer).await;
    let mut own = within(JobWatcher::open(&*transport, second.id())).await.unwrap();
    publish_live_end(&*transport, finished(second.id(), 0, "of the second")).await;
    assert_eq!(within(second_watch.finished()).await.unwrap().conclusion.text, "of the second");
    assert_eq!(within(own.finished()).await.unwrap().conclusion.text, "of the second");
    // The same end in the journal changes nothing.
    publish_live_end(&*transport, finished(first.id(), 0, "of the first")).await;
    publish_fact(&*transport, finished(first.id(), 0, "of the first")).await;
    assert_eq!(within(first_watch.finished()).await.unwrap().conclusion.text, "of the first");
}

/// A live end of an earlier round that arrives late does not end the present round.
#[tokio::test]
async fn late_end_of_old_round_ignored() {
    let transport = CountingTransport::new();
    let producer = Producer::new(Arc::clone(&transport) as _, "test");
    let (submission, _) = submit(&producer).await;
    let job = submission.id();
    publish_fact(&*transport, finished(job, 0, "at first")).await;
    publish_fact(&*transport, Reopened { job, round: Round(1), version: 0 }).await;
    let mut watch = within(JobWatcher::open(&*transport, job)).await.unwrap();
    while !matches!(within(watch.next()).await.unwrap(), JobUpdate::CaughtUp) {}
    publish_live_end(&*transport, finished(job, 0, "at first")).await;
    publish_live_end(&*transport, finished(job, 1, "again")).await;
    assert_eq!(within(watch.finished()).await.unwrap().conclusion.text, "again");
}

/// A producer that may not subscribe to events reads ends in the journal.
#[tokio::test]
async fn forbidden_events_use_journal() {
    let transport = CountingTransport::with_events_forbidden(true);
    let producer = Producer::new(Arc::clone(&transport) as _, "test");
    let (first, mut watch) = submit(&producer).await;
    let _second = submit(&producer).await;
    publish_fact(&*transport, finished(first.id(), 0, "from the journal")).await;
    assert_eq!(within(watch.finished()).await.unwrap().conclusion.text, "from the journal");
    assert_eq!(transport.opened()[2], 1, "it is not tried again for each job");
}

#[tokio::test]
async fn lagging_watch_reads_journal() {
    let transport = CountingTransport::new();
    let producer = Producer::new(Arc::clone(&transport) as _, "test");
    let (lagging, mut lagging_watch) = submit(&producer).await;
    let (next, mut next_watch) = submit(&producer).await;
    let (a, b) = (lagging.id(), next.id());
    for round in 1..=FACTS_MAX_WAITING {
        publish_fact(&*transport, Reopened { job: a, round: Round(round as u32), version: 0 }).await;
    }
    publish_fact(&*transport, finished(a, FACTS_MAX_WAITING as u32, "after many rounds")).await;
    publish_fact(&*transport, finished(b, 0, "next")).await;
    within(next_watch.finished()).await.unwrap(); // all earlier facts have been delivered then
    assert_eq!(transport.opened()[1], 1);
    assert_eq!(within(lagging_watch.finished()).await.unwrap().conclusion.text, "after many rounds");
    assert_eq!(transport.opened()[1], 2);
}

#[tokio::test]
async fn watch_outlives_producer() {
    let transport = CountingTransport::new();
    let producer = Producer::new(Arc::clone(&transport) as _, "test");
    let (submission, mut watch) = submit(&producer).await;
    let job = submission.id();
    within(submission.send()).await.unwrap();
    drop(producer);
    publish_fact(&*transport, finished(job, 0, "later")).await;
    let JobUpdate::Finished(end) = within(watch.next()).await.unwrap() else { panic!("no end") };
    assert_eq!(end.conclusion.text, "later");
}
