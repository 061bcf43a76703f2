//! Faulty networks and brokers in trouble: nothing is lost, it only takes longer.

use std::collections::HashSet;

use gristmill_shared::{Health, QueueRole};
use tokio::sync::watch;

use super::{
    outages::PrivateBroker,
    tcp_proxy::{ProxyMode, TcpProxy},
    *,
};

/// Publishes `count` messages through a proxy, and receives each of them at least once.
async fn assert_all_arrive(transport: &AmqpTransport, queue: &Queue, count: usize) {
    let mut consumer = within(transport.consume(queue, 50)).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let publishing = publisher.publish(numbered(queue, 0..count));
    let consuming = async {
        let mut seen = HashSet::new();
        while seen.len() < count {
            for delivery in within(consumer.recv(50)).await.unwrap() {
                seen.insert(delivery.message.id);
                delivery.receipt.ack();
            }
        }
    };
    let (answers, ()) = within(async { tokio::join!(publishing, consuming) }).await;
    assert!(answers.iter().all(|answer| *answer == Published::Confirmed), "{answers:?}");
}

async fn wait_for_health(health: &mut watch::Receiver<Health>, wanted: impl Fn(&Health) -> bool) {
    within(health.wait_for(wanted)).await.unwrap();
}

/// A network that delivers single bytes loses no message and no connection.
#[tokio::test]
async fn single_bytes_lose_nothing() {
    let proxy = TcpProxy::start().await;
    proxy.set_mode(ProxyMode::SingleBytes);
    let (transport, lane) = proxy.open().await;
    assert_all_arrive(&transport, &QueueRole::Tasks.of(&lane), 100).await;
    assert_eq!(*transport.health().borrow(), Health::Ready, "slow is not lost");
}

/// A delay of 150 ms each way loses no message and no connection.
#[tokio::test]
async fn latency_loses_no_message() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    proxy.set_mode(ProxyMode::Delayed(Duration::from_millis(150)));
    let start = std::time::Instant::now();
    assert_all_arrive(&transport, &QueueRole::Tasks.of(&lane), 500).await;
    assert!(start.elapsed() > Duration::from_millis(600), "it was not late");
    assert_eq!(*transport.health().borrow(), Health::Ready, "slow is not lost");
}

/// A connection that is cut anywhere within a frame loses no message.
#[tokio::test]
async fn cut_in_any_frame_loses_nothing() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let cuts = [1, 7, 8, 30, 333, 4_444];
    for bytes in cuts {
        let before = proxy.fault_count();
        proxy.set_mode(ProxyMode::CutAfter(bytes));
        assert_all_arrive(&transport, &queue, 200).await;
        assert!(proxy.fault_count() > before, "it was not cut after {bytes} bytes");
    }
}

/// A connection that breaks whenever a message is sent says nothing about the message, however
/// often it breaks.
#[tokio::test]
async fn repeated_cuts_lose_no_message() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    proxy.set_mode(ProxyMode::CutAt("cut here"));
    let publisher = transport.publisher().await.unwrap();
    let message = Message { id: "cut here".into(), ..message(0) };
    let publishing = publisher.publish(vec![outgoing(&queue, message)]);
    let mending = async {
        while proxy.fault_count() < 11 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        proxy.set_mode(ProxyMode::Normal);
    };
    let (answers, ()) = within(async { tokio::join!(publishing, mending) }).await;
    assert_eq!(answers, [Published::Confirmed]);
}

/// A broker whose answers no longer arrive is detected by its heartbeats.
#[tokio::test]
async fn heartbeats_detect_a_mute_broker() {
    let proxy = TcpProxy::start().await;
    let config = AmqpConfig::new(&format!("{}?heartbeat=2", proxy.url())).unwrap();
    let transport = within(AmqpTransport::connect(config)).await.unwrap();
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    within(transport.open_lane(&lane)).await.unwrap();
    let mut health = transport.health();
    proxy.set_mode(ProxyMode::Mute);
    let publishing = tokio::spawn({
        let (publisher, queue) = (transport.publisher().await.unwrap(), QueueRole::Tasks.of(&lane));
        async move { publisher.publish(numbered(&queue, 0..10)).await }
    });
    wait_for_health(&mut health, |health| matches!(health, Health::Reconnecting(_))).await;
    assert!(proxy.fault_count() > 0 && !publishing.is_finished());
    proxy.set_mode(ProxyMode::Normal);
    wait_for_health(&mut health, |health| *health == Health::Ready).await;
    assert_eq!(within(publishing).await.unwrap(), vec![Published::Confirmed; 10]);
}

/// A broker low on memory reports it, takes no message, and still delivers.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_broker_still_delivers() {
    let broker = PrivateBroker::start().await;
    let transport = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    let lane = Lane::default();
    transport.open_lane(&lane).await.unwrap();
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..2)).await;
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    let mut health = transport.health();

    broker.set_memory_alarm(true).await;
    // The block is noticed although nothing is published.
    wait_for_health(&mut health, |health| matches!(health, Health::Blocked(why) if why.contains("memory")))
        .await;
    let publishing = tokio::spawn({
        let (publisher, batch) = (transport.publisher().await.unwrap(), numbered(&queue, 2..3));
        async move { publisher.publish(batch).await }
    });
    for id in ["0", "1"] {
        let delivery = receive(&mut consumer, 1).await.remove(0);
        assert_eq!(delivery.message.id, id);
        delivery.receipt.ack(); // which gets through, or the second would not come
    }
    assert_no_delivery(&mut consumer).await;

    // A connection that is lost while it is blocked comes back, and is blocked again.
    let closing = broker.with(|broker| broker.ctl(&["close_all_connections", "drill"]).unwrap());
    // Together, since it may be back before the tool has ended.
    tokio::join!(wait_for_health(&mut health, |health| matches!(health, Health::Reconnecting(_))), closing);
    wait_for_health(&mut health, |health| matches!(health, Health::Blocked(_))).await;
    assert!(!publishing.is_finished());

    broker.set_memory_alarm(false).await;
    wait_for_health(&mut health, |health| *health == Health::Ready).await;
    assert_eq!(within(publishing).await.unwrap(), [Published::Confirmed]);
    assert_eq!(ids(&receive(&mut consumer, 1).await), ["2"]);
}

/// A job survives a memory alarm, and its progress bar reports it.
#[tokio::test(flavor = "multi_thread")]
async fn bar_reports_a_memory_alarm() {
    let broker = PrivateBroker::start().await;
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let (_sink, _worker) = (start("sink"), start("worker --slots 1"));
    let mut submitted = start("producer submit spin --tasks 10000 --micros 500 --batch 10 --wait");
    let line = submitted.wait_for("job 01").await;
    let job = line.strip_prefix("job ").unwrap();
    site.wait_for_outcomes(job).await;
    broker.set_memory_alarm(true).await;
    submitted.wait_for("broker blocked: low on memory").await;
    broker.set_memory_alarm(false).await;
    let ended = submitted.output().await;
    assert!(ended.stderr.contains("the broker works again"), "{ended:?}");
    assert!(ended.answer().contains("49995000"), "{ended:?}");
    site.verify(job).await;
}

/// A producer that is interrupted while it opens a job on a blocked broker names the job and the
/// reason for the delay.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_open_names_the_job() {
    let broker = PrivateBroker::start().await;
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    assert_eq!(start("gristmill setup").output().await.code, 0);
    broker.set_memory_alarm(true).await;
    let mut submitted = start("producer submit spin --tasks 10");
    let line = submitted.wait_for("the broker has not taken the job yet").await;
    assert!(line.contains("low on memory") && !line.contains("sink"), "{line}");
    submitted.signal("-INT").await;
    let ended = submitted.output().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (130, ""), "{ended:?}");
    let job = ended.stderr.split("`producer resume ").nth(1).and_then(|rest| rest.split('`').next()).unwrap();
    assert!(ended.stderr.contains(&format!("job {job} may be open")), "{ended:?}");
    assert!(ended.stderr.contains(&format!("`producer cancel {job}")), "{ended:?}");

    broker.set_memory_alarm(false).await;
    let (_sink, _worker) = (start("sink"), start("worker --slots 1"));
    let resumed = start(&format!("producer resume {job} --wait")).output().await;
    assert!(resumed.answer().contains("10 tasks, sum 45"), "{resumed:?}");
}

/// Messages that a queue does not confirm are sent again on another channel.
#[tokio::test(flavor = "multi_thread")]
async fn unconfirmed_messages_are_resent() {
    let broker = PrivateBroker::start().await;
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let (_sink, mut worker) = (start("sink"), start("worker --slots 1"));
    worker.wait_for("taking tasks").await;
    let process = format!("whereis('%2F_{}')", site.queue(QueueRole::Tasks));
    broker.eval(format!("ok = sys:suspend({process})")).await;
    let mut submitted = start("producer submit spin --tasks 100 --wait");
    submitted.wait_for("without an answer").await;
    broker.eval(format!("ok = sys:resume({process})")).await;
    let ended = submitted.output().await;
    assert!(ended.answer().contains("100 tasks, sum 4950"), "{ended:?}");
    site.verify(ended.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap()).await;
}

/// A task that outlasts the broker's `consumer_timeout` is counted once.
#[tokio::test(flavor = "multi_thread")]
async fn overlong_task_is_counted_once() {
    let broker = PrivateBroker::start().await;
    // The broker checks every channel three times a second, and requeues what is unsettled for a
    // second.
    for (setting, milliseconds) in [("channel_tick_interval", 300), ("consumer_timeout", 1_000)] {
        broker.eval(format!("application:set_env(rabbit, {setting}, {milliseconds})")).await;
    }
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let (_sink, mut worker) = (start("sink"), start("worker --slots 1"));
    let submitted = start("producer submit spin --tasks 2 --micros 2500000 --batch 1 --wait");
    worker.wait_for("delivery acknowledgement").await;
    let ended = submitted.output().await;
    assert!(ended.answer().contains("2 tasks, sum 1"), "{ended:?}");
    assert!(!ended.stderr.contains("interrupted"), "a reader holds no deliveries: {ended:?}");
    let job = ended.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    site.verify(&job).await;
}

/// A worker that may not publish results ends, and its tasks stay in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn worker_without_rights_loses_no_task() {
    let broker = PrivateBroker::start().await;
    let url = broker.url();
    broker.with(|broker| broker.ctl(&["add_user", "half", "half"]).unwrap()).await;
    let all_but_results = r"^(?!gristmill\.results$).*";
    let rights = move |broker: &mut gristmill::testing::LocalBroker| {
        broker.ctl(&["set_permissions", "half", ".*", all_but_results, ".*"]).unwrap()
    };
    broker.with(rights).await;
    let site = crate::harness::Site::new();
    let start =
        |words: &str, url: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", url));
    let _sink = start("sink", &url);
    let submitted = start("producer submit spin --tasks 100 --batch 10 --wait", &url);
    let half = start("worker --slots 1", &url.replace("guest:guest", "half:half")).output().await;
    assert_eq!(half.code, 3, "{half:?}");
    assert!(half.stderr.contains("does not let us publish to"), "{half:?}");
    let _worker = start("worker --slots 1", &url);
    let ended = submitted.output().await;
    assert!(ended.answer().contains("100 tasks, sum 4950"), "{ended:?}");
}
