//! The sink on the memory transport: what goes in, what comes out, and how it ends.

use std::{fs, future::pending, path::Path, time::Duration};

use async_trait::async_trait;
use gristmill_shared::{
    Address, Capabilities, EventFilter, EventReader, JobId, JournalEntry, JournalReader, Message, Outgoing,
    Published, Queue, Shards, TransportError,
    memory::MemoryTransport,
    wire::{Event, Fact, Finished, Form},
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    LedgerReader,
    tests::toy::{Submitted, Toy, app, garbage, registry},
};

/// Whatever is waited for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(ledger: &Path) -> SinkConfig {
    let ledger = LedgerPlace::File(ledger.into());
    let (lane, stall_after) = (Lane::default(), None);
    SinkConfig { registry: registry(), lane, ledger, adopt: false, app: app(), stall_after }
}

/// A sink at work.
struct Running {
    shutdown: oneshot::Sender<()>,
    end: JoinHandle<Result<SinkReport, SinkError>>,
}

impl Running {
    fn start(config: SinkConfig, transport: &Arc<MemoryTransport>) -> Self {
        Self::run(Sink::open(config).unwrap(), transport)
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
        timeout(PATIENCE, end).await.expect("the sink did not end in time").unwrap()
    }
}

async fn publish(transport: &MemoryTransport, messages: impl IntoIterator<Item = Message>) {
    transport.open_lane(&Lane::default()).await.unwrap();
    let to = Address::Queue(QueueRole::Results.of(&Lane::default()));
    let outgoing = messages.into_iter().map(|message| Outgoing { to: to.clone(), message });
    let answers = transport.publisher().await.unwrap().publish(outgoing.collect()).await;
    assert!(answers.iter().all(|answer| *answer == Published::Stored), "{answers:?}");
}

/// Everything that stands in the journal until the first fact that `is_last`.
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
    timeout(PATIENCE, read).await.expect("the fact did not come in time");
    facts
}

async fn finished(transport: &MemoryTransport, job: JobId) -> Finished {
    let is_it = |fact: &Fact| matches!(fact, Fact::Finished(finished) if finished.job == job);
    match journal_until(transport, is_it).await.pop() {
        Some(Fact::Finished(finished)) => finished,
        other => panic!("{other:?}"),
    }
}

/// What waits in a queue, or is held by nobody any more.
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
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn a_sink_that_starts_last_gets_everything_and_leaves_nothing() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let results = (0..50).map(|piece| job.done(piece * 10..piece * 10 + 10));
    publish(&transport, [job.opened()].into_iter().chain(results).chain([job.done(3..9), job.sealed(500)]))
        .await;
    let ledger = dir.path().join("ledger");
    let sink = Running::start(config(&ledger), &transport);
    let finished = finished(&transport, job.id).await;
    assert_eq!((finished.account.done, finished.account.duplicates), (500, 6));
    let report = sink.stop().await.unwrap();
    assert_eq!(report, SinkReport { messages: 53, tasks: 500, jobs_ended: 1, dead: 0 });
    assert_eq!(
        waiting(&transport, &QueueRole::Results.of(&Lane::default())).await,
        0,
        "something was not acked"
    );
    assert!(LedgerReader::open(&ledger).unwrap().verify(job.id).unwrap().ok);
}

#[tokio::test]
async fn a_ledger_in_memory_serves_as_well() {
    let (transport, job) = (MemoryTransport::new(), Submitted::toy());
    let config = SinkConfig { ledger: LedgerPlace::Memory, ..config(Path::new("")) };
    let sink = Running::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..10), job.sealed(10)]).await;
    assert_eq!(finished(&transport, job.id).await.conclusion.text, "45 from 10 tasks");
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn garbage_is_recorded_and_everything_goes_on() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    let ledger = dir.path().join("ledger");
    let sink = Running::start(config(&ledger), &transport);
    publish(&transport, [garbage(), job.opened(), garbage(), job.done(0..1), job.sealed(1)]).await;
    finished(&transport, job.id).await;
    let reader = LedgerReader::open(&ledger).unwrap();
    until("two dead messages", || reader.dead().unwrap().messages.len() == 2).await;
    let dead = reader.dead().unwrap().messages.remove(0);
    assert_eq!(dead.origin.as_deref(), Some("gristmill.default.results"));
    assert!(dead.reason.contains("spam.v1"), "{dead:?}");
    assert_eq!(sink.stop().await.unwrap().dead, 2);
    for role in [QueueRole::Results, QueueRole::Dead] {
        assert_eq!(waiting(&transport, &role.of(&Lane::default())).await, 0, "{role:?}");
    }
}

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
async fn what_a_ledger_has_to_send_on_another_lane_is_sent_there() {
    let (dir, night) = (tempfile::tempdir().unwrap(), Lane::new("night").unwrap());
    let ledger = dir.path().join("ledger");
    let on_night = SinkConfig { lane: night.clone(), ..config(&ledger) };
    let sink = Sink::open(on_night.clone()).unwrap();
    let mut clerk = Clerk::new(sink.ledger, on_night.registry, night.clone(), app());
    clerk.take(crate::tests::toy::delivery(garbage())).unwrap();
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

#[tokio::test]
async fn tasks_that_are_sent_again_wait_for_room_and_hold_up_no_fact() {
    let (transport, dir, job) = (MemoryTransport::new(), tempfile::tempdir().unwrap(), Submitted::toy());
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let tasks = QueueRole::Tasks.of(&Lane::default());
    let fill = || Outgoing { to: Address::Queue(tasks.clone()), message: garbage() };
    while publisher.publish(vec![fill()]).await[0] == Published::Stored {}
    let sink = Running::start(config(&dir.path().join("ledger")), &transport);
    publish(&transport, [job.opened(), job.failed(&[0]), job.sealed(1), job.reopen(&[])]).await;
    journal_until(&transport, |fact| matches!(fact, Fact::Reopened(_))).await;
    let other = Submitted::toy();
    publish(&transport, [other.opened(), other.sealed(0)]).await;
    finished(&transport, other.id).await;

    let mut worker = transport.consume(&tasks, 1).await.unwrap();
    let batch = async {
        loop {
            for delivery in worker.recv(1).await.unwrap() {
                delivery.receipt.ack();
                if delivery.message.job == Some(job.id) {
                    return delivery.message;
                }
            }
        }
    };
    let batch = timeout(PATIENCE, batch).await.expect("the task did not come");
    assert_eq!((&*batch.form, batch.headers.attempt), ("gristmill.batch.v1", 5), "attempt numbers go on");
    publish(&transport, [job.spans(&[(0, 1, "[5]")], &[], 1)]).await;
    let is_last = |fact: &Fact| matches!(fact, Fact::Finished(end) if end.job == job.id && end.round.0 == 1);
    journal_until(&transport, is_last).await;
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn progress_and_an_early_end_are_told() {
    let (transport, job) =
        (MemoryTransport::new(), Submitted::new(&Toy { stop_at: Some(4), ..Toy::default() }));
    let config = SinkConfig { ledger: LedgerPlace::Memory, ..config(Path::new("")) };
    let mut events = transport.events(EventFilter::Job(job.id)).await.unwrap();
    let sink = Running::start(config, &transport);
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
    assert_eq!(timeout(PATIENCE, last).await.expect("no such event").account.done, 5);
    let facts = journal_until(&transport, |fact| matches!(fact, Fact::Finished(_))).await;
    assert!(matches!(&facts[..], [Fact::Serving(_), Fact::Opened(_), Fact::Stopped(_), Fact::Finished(_)]));
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn an_end_is_told_live_as_the_fact_that_the_journal_has() {
    let (transport, job) = (MemoryTransport::new(), Submitted::toy());
    let config = SinkConfig { ledger: LedgerPlace::Memory, ..config(Path::new("")) };
    let mut events = transport.events(EventFilter::Job(job.id)).await.unwrap();
    let mut journal = transport.journal().await.unwrap();
    let sink = Running::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..5), job.sealed(5)]).await;
    let both = async {
        let live = loop {
            let event = events.next().await.unwrap();
            if event.form == Finished::FORM {
                break event;
            }
        };
        loop {
            match journal.next().await.unwrap() {
                JournalEntry::Fact(fact) if fact.form == Finished::FORM => return (live, fact),
                _ => {}
            }
        }
    };
    let (live, fact) = timeout(PATIENCE, both).await.expect("one of them did not come");
    assert_eq!((&live.id, live.job, &live.body), (&fact.id, fact.job, &fact.body));
    assert!(!fact.id.is_empty());
    sink.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_that_stalls_is_told_of_while_nothing_else_happens() {
    let (transport, job) = (MemoryTransport::new(), Submitted::toy());
    let after = Some(Duration::from_millis(30));
    let config = SinkConfig { ledger: LedgerPlace::Memory, stall_after: after, ..config(Path::new("")) };
    let mut events = transport.events(EventFilter::Job(job.id)).await.unwrap();
    let sink = Running::start(config, &transport);
    publish(&transport, [job.opened(), job.done(0..5), job.sealed(8)]).await;
    let stalled = async {
        loop {
            if let Event::Missing(missing) = Event::decode(&events.next().await.unwrap()).unwrap() {
                return missing;
            }
        }
    };
    let event = timeout(PATIENCE, stalled).await.expect("no such event");
    let facts = journal_until(&transport, |fact| matches!(fact, Fact::Missing(_))).await;
    let Some(Fact::Missing(missing)) = facts.last() else { panic!("{facts:?}") };
    assert_eq!((missing, &missing.ranges[..]), (&event, &[(gristmill_shared::TaskIndex(5), 3)][..]));
    publish(&transport, [job.done(5..8)]).await;
    assert_eq!(finished(&transport, job.id).await.account.done, 8);
    sink.stop().await.unwrap();
}

#[test]
fn what_is_no_ledger_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("notes"), "eggs, milk").unwrap();
    fs::create_dir(path("folder")).unwrap();
    rusqlite::Connection::open(path("foreign"))
        .unwrap()
        .execute_batch("CREATE TABLE birds (name TEXT)")
        .unwrap();
    fs::write(path("torn"), b"SQLite format 3\0 and then something else").unwrap();
    drop(Sink::open(config(&path("future"))).unwrap());
    rusqlite::Connection::open(path("future")).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    let cases = [
        ("notes", "is not a ledger: it is no SQLite file (hint:"),
        ("folder", "is not a ledger: it is a directory"),
        ("notes/ledger", "is not a ledger: a part of its path is a file"),
        ("foreign", "is not a ledger: it is the SQLite database of another program"),
        ("torn", "is not a ledger: it is no SQLite file"),
        ("future", "has version 9, and this program reads version 2 only (hint:"),
    ];
    for (name, expected) in cases {
        let before = fs::read(path(name)).ok();
        let errors = [
            Sink::open(config(&path(name))).unwrap_err(),
            LedgerReader::open(&path(name)).unwrap_err(),
            crate::prune(&path(name), crate::PruneRule { older_than: None, keep: None }).unwrap_err(),
        ];
        for error in errors {
            let error = error.to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
        assert_eq!(fs::read(path(name)).ok(), before, "{name} was changed");
    }
    let error = LedgerReader::open(&path("nowhere")).unwrap_err();
    assert!(matches!(error, SinkError::Missing { .. }), "{error}");
    assert!(!path("nowhere").exists());
}

#[test]
fn an_empty_file_becomes_a_ledger_with_an_identity_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    fs::write(&paths[0], "").unwrap();
    let ids = paths.each_ref().map(|path| Sink::open(config(path)).unwrap().ledger_id().clone());
    assert_ne!(ids[0], ids[1]);
    assert_eq!(*Sink::open(config(&paths[0])).unwrap().ledger_id(), ids[0]);
}
