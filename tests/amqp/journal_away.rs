//! A journal that is unavailable while everything else works. A broker that is killed moments after
//! its first stream was declared can come back like that: its directory of streams was not on its
//! disk yet.

use std::time::Instant;

use gristmill_amqp::diagnose;
use gristmill_shared::{Consumer, JournalEntry, QueueRole, Severity, TransportError};

use super::{
    outages::PrivateBroker,
    recovery::{fact, read_up_to},
    *,
};

/// Longer than the first period in which a batch of facts may stay unconfirmed, so that what
/// follows is covered too.
const SILENCE_TIME: Duration = Duration::from_secs(12);
/// The broker's process that starts stream leaders and knows where they are.
const COORDINATOR_PROCESS: &str = "rabbit_stream_coordinator";
const JOURNAL_RESOURCE: &str = r#"rabbit_misc:r(<<"/">>, queue, <<"gristmill.journal">>)"#;

async fn open_at(broker: &PrivateBroker) -> Arc<AmqpTransport> {
    let transport = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    within(transport.open_lane(&Lane::default())).await.unwrap();
    transport
}

fn spawn_publish(transport: &Arc<AmqpTransport>, fact: Outgoing) -> tokio::task::JoinHandle<Vec<Published>> {
    let transport = Arc::clone(transport);
    tokio::spawn(async move { transport.publisher().await.unwrap().publish(vec![fact]).await })
}

/// Publishes messages, receives them and acks them.
async fn exchange_messages(transport: &AmqpTransport, consumer: &mut Box<dyn Consumer>) {
    let queue = QueueRole::Results.of(&Lane::default());
    for round in 0..20 {
        store(transport, numbered(&queue, round * 10..(round + 1) * 10)).await;
        for delivery in receive(consumer, 10).await {
            delivery.receipt.ack();
        }
    }
}

/// Only facts wait for a journal without a leader; messages and reconnects continue.
#[tokio::test(flavor = "multi_thread")]
async fn leaderless_journal_holds_only_facts() {
    let _ = tracing_subscriber::fmt().with_env_filter("gristmill_amqp=debug").try_init();
    let broker = PrivateBroker::start().await;
    let (transport, job) = (open_at(&broker).await, JobId::generate());
    let mut reader = transport.journal().await.unwrap();
    assert!(matches!(within(reader.next()).await.unwrap(), JournalEntry::CaughtUp));
    let mut consumer = transport.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();
    store(&transport, vec![fact(job, "before")]).await;
    read_up_to(&mut reader, job, "before").await;

    broker.eval(format!("sys:suspend({COORDINATOR_PROCESS})")).await;
    broker
        .eval(format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup({JOURNAL_RESOURCE}), exit(amqqueue:get_pid(Q), kill)"
        ))
        .await;
    let told = spawn_publish(&transport, fact(job, "meanwhile"));
    exchange_messages(&transport, &mut consumer).await;

    // Reconnecting does not need the journal either.
    let following = tokio::spawn(async move { (read_up_to(&mut reader, job, "meanwhile").await, reader) });
    broker.with(|broker| broker.ctl(&["close_all_connections", "drill"]).unwrap()).await;
    let start = Instant::now();
    while start.elapsed() < SILENCE_TIME {
        exchange_messages(&transport, &mut consumer).await;
    }
    let connections = broker.connections().await;
    assert!(connections.contains("/2/consume") && !connections.contains("/3/"), "{connections}");
    assert!(!told.is_finished() && !following.is_finished(), "the journal was not away");

    broker.eval(format!("sys:resume({COORDINATOR_PROCESS})")).await;
    assert_eq!(within(told).await.unwrap(), [Published::Confirmed]);
    let ((facts, _), _) = within(following).await.unwrap();
    assert_eq!(facts.last().unwrap(), "meanwhile");
}

/// The command in the error's hint restores a journal that the broker forgot, with all its facts.
#[tokio::test(flavor = "multi_thread")]
async fn hinted_command_restores_the_journal() {
    let broker = PrivateBroker::start().await;
    let (transport, job) = (open_at(&broker).await, JobId::generate());
    store(&transport, (0..50).map(|id| fact(job, id)).collect()).await;
    let mut reader = transport.journal().await.unwrap();
    read_up_to(&mut reader, job, "49").await;
    let mut consumer = transport.consume(&QueueRole::Results.of(&Lane::default()), 10).await.unwrap();

    broker.sync_directory().await;
    // Deletes the directory's entry, as if the broker had not written it yet.
    let books = "#{names := #{directory_rev := Books}} = ra_system:fetch(coordination)";
    broker.eval(format!("{books}, dets:delete(Books, rabbit_stream_coordinator), dets:sync(Books)")).await;
    broker.with(|broker| broker.kill().unwrap()).await;
    broker.with(|broker| broker.restart().unwrap()).await;

    let told = spawn_publish(&transport, fact(job, "meanwhile"));
    exchange_messages(&transport, &mut consumer).await;
    let following = tokio::spawn(async move { (read_up_to(&mut reader, job, "meanwhile").await, reader) });
    let newcomer = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    let refused = within(newcomer.open_lane(&Lane::default())).await.unwrap_err();
    assert!(matches!(refused, TransportError::Disconnected { .. }), "{refused}");
    exchange_messages(&transport, &mut consumer).await;
    let findings = diagnose(&AmqpConfig::new(&broker.url()).unwrap(), &Lane::default(), None).await;
    let problems: Vec<_> = findings.iter().filter(|finding| finding.verdict == Severity::Problem).collect();
    assert!(
        problems.iter().any(|it| it.found.contains("the queue gristmill.journal is known")),
        "{problems:?}"
    );
    let hint = problems[0].hint.as_ref().unwrap();
    assert!(!told.is_finished() && !following.is_finished(), "the journal was not away");

    let refused = refused.to_string();
    assert!(refused.contains(hint), "the doctor knows the same remedy: {hint}");
    let command = refused.split_once("rabbitmqctl eval '").unwrap().1.split_once(".'").unwrap().0;
    broker.eval(command.into()).await;
    assert_eq!(within(told).await.unwrap(), [Published::Confirmed]);
    let ((facts, _), _) = within(following).await.unwrap();
    assert_eq!(facts.last().unwrap(), "meanwhile");
    within(newcomer.open_lane(&Lane::default())).await.unwrap();
    let (facts, _) = read_up_to(&mut newcomer.journal().await.unwrap(), job, "meanwhile").await;
    let kept = (0..50).map(|id| id.to_string()).all(|id| facts.contains(&id));
    assert!(kept, "{facts:?}");
}
