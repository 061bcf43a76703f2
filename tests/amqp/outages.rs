//! Brokers that are killed, close connections, fall silent or forget. Each belongs to its test.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use gristmill::testing::LocalBroker;
use gristmill_shared::{EventFilter, JournalEntry, QueueRole};

use super::{
    recovery::{exchange_event, fact, read_up_to},
    tcp_proxy::TcpProxy,
    *,
};
use crate::harness::Site;

/// Bound for an outage: a broker takes some seconds to start, more on a busy machine.
const OUTAGE_BOUND: Duration = Duration::from_secs(120);

/// A broker of the test's own. Its methods block, so each call has a thread of its own.
#[derive(Clone)]
pub(super) struct PrivateBroker(Arc<Mutex<LocalBroker>>);

impl PrivateBroker {
    pub(super) async fn start() -> Self {
        let broker = tokio::task::spawn_blocking(|| LocalBroker::start().unwrap()).await.unwrap();
        Self(Arc::new(Mutex::new(broker)))
    }

    pub(super) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut LocalBroker) -> T + Send + 'static,
    ) -> T {
        let broker = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || act(&mut broker.lock().unwrap())).await.unwrap()
    }

    pub(super) fn url(&self) -> String {
        self.0.lock().unwrap().url()
    }

    /// Raises or clears the memory alarm.
    pub(super) async fn set_memory_alarm(&self, on: bool) {
        let watermark = if on { "0.00001" } else { "0.4" };
        self.with(move |broker| broker.ctl(&["set_vm_memory_high_watermark", watermark]).unwrap()).await;
    }

    /// Evaluates an Erlang expression on the broker.
    pub(super) async fn eval(&self, expression: String) {
        self.with(move |broker| broker.ctl(&["eval", &format!("{expression}.")]).unwrap()).await;
    }

    /// Writes the broker's directory of queues and streams to its disk, which the broker does by
    /// itself half a second after they were declared.
    pub(super) async fn sync_directory(&self) {
        for system in ["quorum_queues", "coordination"] {
            let books = format!("#{{names := #{{directory_rev := Books}}}} = ra_system:fetch({system})");
            self.eval(format!("{books}, ok = dets:sync(Books)")).await;
        }
    }

    /// Returns the counts of queues and channels, which may explain a hang.
    async fn describe_queues(&self) -> String {
        self.with(|broker| {
            let queues = ["list_queues", "name", "messages_ready", "messages_unacknowledged", "consumers"];
            let channels = ["list_channels", "connection", "messages_unconfirmed", "messages_unacknowledged"];
            [broker.ctl(&queues), broker.ctl(&channels)]
                .map(|said| said.unwrap_or_else(|e| e.to_string()))
                .concat()
        })
        .await
    }

    /// Returns the names of the clients' connections, which count their transport's generations.
    pub(super) async fn connections(&self) -> String {
        self.with(|broker| broker.ctl(&["list_connections", "client_properties"]).unwrap()).await
    }
}

/// A broker that is killed under load and restarted loses no message.
#[tokio::test(flavor = "multi_thread")]
async fn broker_kill_under_load_loses_nothing() {
    const BATCH_COUNT: usize = 150;
    const BATCH_SIZE: usize = 200;
    let broker = PrivateBroker::start().await;
    let transport = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    let lane = Lane::default();
    transport.open_lane(&lane).await.unwrap();
    let (queue, held_queue) = (QueueRole::Requeued.of(&lane), QueueRole::Suspect.of(&lane));
    broker.sync_directory().await;
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();

    store(&transport, vec![outgoing(&held_queue, message("held"))]).await;
    let mut holder = transport.consume(&held_queue, 1).await.unwrap();
    let held = receive(&mut holder, 1).await.remove(0);

    let publishing = tokio::spawn({
        let (publisher, queue) = (transport.publisher().await.unwrap(), queue.clone());
        async move {
            for batch in 0..BATCH_COUNT {
                let messages = numbered(&queue, batch * BATCH_SIZE..(batch + 1) * BATCH_SIZE);
                let answers = timeout(OUTAGE_BOUND, publisher.publish(messages)).await.expect("it hangs");
                assert!(answers.iter().all(|answer| *answer == Published::Confirmed), "{answers:?}");
            }
        }
    });
    let mut consumer = transport.consume(&queue, 100).await.unwrap();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut outage = None;
    let consuming = async {
        while seen.len() < BATCH_COUNT * BATCH_SIZE {
            for delivery in consumer.recv(100).await.unwrap() {
                *seen.entry(delivery.message.id).or_default() += 1;
                delivery.receipt.ack();
            }
            if seen.len() > BATCH_COUNT * BATCH_SIZE / 4 && outage.is_none() {
                broker.with(|broker| broker.kill().unwrap()).await;
                assert!(!publishing.is_finished(), "it was killed too late");
                let broker = broker.clone();
                outage = Some(tokio::spawn(async move { broker.with(|b| b.restart().unwrap()).await }));
            }
        }
    };
    if timeout(OUTAGE_BOUND, consuming).await.is_err() {
        let (seen, finished, state) = (seen.len(), publishing.is_finished(), broker.describe_queues().await);
        panic!("it hangs: {seen} of {} seen, all published: {finished}\n{state}", BATCH_COUNT * BATCH_SIZE);
    }
    outage.expect("an outage").await.unwrap();
    within(publishing).await.unwrap();
    println!("{} messages came twice", seen.values().filter(|&&times| times > 1).count());

    // The held delivery comes again, with another receipt.
    let again = receive(&mut holder, 1).await.remove(0);
    assert_eq!((again.message.id.as_str(), again.is_redelivered()), ("held", true));
    held.receipt.ack();
    again.receipt.ack();
    store(&transport, vec![outgoing(&held_queue, message("next"))]).await;
    let next = receive(&mut holder, 1).await.remove(0);
    assert_eq!(
        (next.message.id.as_str(), next.is_redelivered()),
        ("next", false),
        "its channel was still open"
    );

    exchange_event(&transport, &lane, &mut events, "after").await;
    let connections = broker.connections().await;
    assert!(!connections.contains("/1/"), "{connections}");
    transport.close().await;
}

/// A journal reader continues where it was when its broker was killed and restarted.
#[tokio::test(flavor = "multi_thread")]
async fn journal_resumes_after_broker_kill() {
    const FACTS_BEFORE: usize = 200;
    const FACT_COUNT: usize = 2_000;
    let broker = PrivateBroker::start().await;
    let transport = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    transport.open_lane(&Lane::default()).await.unwrap();
    broker.sync_directory().await;
    let job = JobId::generate();
    let mut journal = transport.journal().await.unwrap();
    let telling = tokio::spawn({
        let publisher = transport.publisher().await.unwrap();
        async move {
            for id in 0..FACT_COUNT {
                let answer = timeout(OUTAGE_BOUND, publisher.publish(vec![fact(job, id)])).await;
                assert_eq!(answer.expect("it hangs"), [Published::Confirmed]);
            }
        }
    });
    let (mut facts, early) = read_up_to(&mut journal, job, &FACTS_BEFORE.to_string()).await;
    broker.with(|broker| broker.kill().unwrap()).await;
    assert!(!telling.is_finished(), "it was killed too late");
    broker.with(|broker| broker.restart().unwrap()).await;
    let (rest, late) = read_up_to(&mut journal, job, &(FACT_COUNT - 1).to_string()).await;
    facts.extend(rest);
    within(telling).await.unwrap();
    println!("{} facts came twice", facts.len() - FACT_COUNT);
    let mut known = HashSet::new();
    facts.retain(|id| known.insert(id.clone()));
    assert_eq!(facts, (0..FACT_COUNT).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(early + late, 1, "caught up once");
    transport.close().await;
}

/// The transport reconnects to a broker that closes its connections or falls silent.
#[tokio::test(flavor = "multi_thread")]
async fn closed_or_silent_broker_reconnects() {
    let broker = PrivateBroker::start().await;
    let config = AmqpConfig::new(&format!("{}?heartbeat=2", broker.url())).unwrap();
    let transport = AmqpTransport::connect(config).await.unwrap();
    let lane = Lane::default();
    transport.open_lane(&lane).await.unwrap();
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    store(&transport, numbered(&queue, 0..1)).await;
    let held = receive(&mut consumer, 1).await.remove(0);
    assert!(broker.connections().await.contains("/1/consume"));

    broker.with(|broker| broker.ctl(&["close_all_connections", "drill"]).unwrap()).await;
    let again = receive(&mut consumer, 1).await.remove(0);
    assert!(again.is_redelivered());
    held.receipt.ack(); // stale
    store(&transport, numbered(&queue, 1..2)).await;
    assert_eq!(ids(&receive(&mut consumer, 1).await), ["1"]);
    let connections = broker.connections().await;
    assert!(connections.contains("/2/consume") && connections.contains("/2/publish"), "{connections}");

    broker.with(|broker| broker.pause().unwrap()).await;
    let publishing = tokio::spawn({
        let publisher = transport.publisher().await.unwrap();
        let batch = numbered(&queue, 2..3);
        async move { publisher.publish(batch).await }
    });
    tokio::time::sleep(Duration::from_secs(7)).await; // three heartbeats and more, while nothing can be seen
    assert!(!publishing.is_finished());
    broker.with(|broker| broker.resume().unwrap()).await;
    assert_eq!(within(publishing).await.unwrap(), [Published::Confirmed]);
    let mut names: HashSet<_> = HashSet::new();
    while names.len() < 3 {
        names.extend(receive(&mut consumer, 1).await.into_iter().map(|delivery| delivery.message.id));
    }
    let connections = broker.connections().await;
    assert!(!connections.contains("/2/consume"), "nothing was lost: {connections}");
    drop(again.receipt);
    transport.close().await;
}

/// A journal that was declared again is read from its start.
#[tokio::test(flavor = "multi_thread")]
async fn recreated_journal_starts_over() {
    let broker = PrivateBroker::start().await;
    let proxy = TcpProxy::start_to(&broker.url()).await;
    let (transport, lane) = proxy.open().await;
    let direct = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    let job = JobId::generate();
    let mut reader = transport.journal().await.unwrap();
    assert!(matches!(within(reader.next()).await.unwrap(), JournalEntry::CaughtUp));
    store(&direct, (0..3).map(|id| fact(job, id)).collect()).await;
    read_up_to(&mut reader, job, "2").await;
    let raw_client = RawClient::open_at(&broker.url()).await;
    let journal = || "gristmill.journal".into();

    // Deleted under the reader, which declares it again.
    raw_client.channel.queue_delete(journal(), Default::default()).await.unwrap();
    let sent = async {
        while publish(&direct, vec![fact(job, "a")]).await != [Published::Confirmed] {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ((facts, caught_up), ()) = tokio::join!(read_up_to(&mut reader, job, "a"), within(sent));
    assert_eq!((facts, caught_up), (vec!["a".to_owned()], 0));

    // Deleted and declared again by others during an outage. It is longer than before, so that only
    // the names show the difference.
    within(proxy.take_down()).await;
    raw_client.channel.queue_delete(journal(), Default::default()).await.unwrap();
    direct.open_lane(&lane).await.unwrap();
    store(&direct, ["b", "c", "d"].map(|id| fact(job, id)).to_vec()).await;
    proxy.restore();
    let (facts, caught_up) = read_up_to(&mut reader, job, "d").await;
    assert_eq!((facts, caught_up), (vec!["b".to_owned(), "c".into(), "d".into()], 0));
}

/// Every role survives restarts of the broker without one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn roles_survive_broker_restarts() {
    const OUTAGE_COUNT: usize = 2;
    let broker = PrivateBroker::start().await;
    let url = broker.url();
    let site = Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let mut roles = [start("sink"), start("worker --slots 1"), start("worker --slots 1")];
    roles[1].wait_for("taking tasks").await;
    let mut submitted = start("producer submit spin --tasks 40000 --micros 500 --batch 10 --wait -v");
    submitted.wait_for("job 01").await;
    for outage in 1..=OUTAGE_COUNT {
        tokio::time::sleep(Duration::from_secs(1)).await; // of work
        broker.with(|broker| broker.kill().unwrap()).await;
        for role in roles.iter_mut().chain([&mut submitted]) {
            role.wait_for_times("lost the connection", outage).await;
        }
        broker.with(|broker| broker.restart().unwrap()).await;
        // All of them: a role that had not reconnected would not lose its connection once more.
        for role in roles.iter_mut().chain([&mut submitted]) {
            role.wait_for_times("again after", outage).await;
        }
    }
    let submitted = submitted.output().await;
    assert!(submitted.answer().contains("799980000"), "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    site.verify(&job).await;
    for role in roles {
        let ended = role.stop().await;
        assert_eq!(ended.code, 0, "{ended:?}");
        // A busy machine may cost a connection more.
        assert!(ended.stderr.matches("lost the connection").count() >= OUTAGE_COUNT, "{ended:?}");
        println!("{}", ended.stderr);
    }
}
