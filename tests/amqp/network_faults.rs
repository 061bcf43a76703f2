//! Bad wires and brokers in trouble: nothing is lost, it only takes longer.

use std::collections::HashSet;

use gristmill_shared::{Health, QueueRole};
use tokio::sync::watch;

use super::{
    outages::Own,
    tcp_proxy::{Manner, Wire},
    *,
};

/// Publishes so many messages over a wire, and takes them all, as often as they come.
async fn all_arrive(transport: &AmqpTransport, queue: &Queue, count: usize) {
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
    assert!(answers.iter().all(|answer| *answer == Published::Stored), "{answers:?}");
}

async fn becomes(health: &mut watch::Receiver<Health>, wanted: impl Fn(&Health) -> bool) {
    within(health.wait_for(wanted)).await.unwrap();
}

#[tokio::test]
async fn single_bytes_are_as_good_as_packets() {
    let wire = Wire::lay().await;
    wire.treat(Manner::InBytes);
    let (transport, lane) = wire.open().await;
    all_arrive(&transport, &QueueRole::Tasks.of(&lane), 100).await;
    assert_eq!(*transport.health().borrow(), Health::Well, "slow is not lost");
}

#[tokio::test]
async fn a_long_way_costs_time_only() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    wire.treat(Manner::Late(Duration::from_millis(150)));
    let start = std::time::Instant::now();
    all_arrive(&transport, &QueueRole::Tasks.of(&lane), 500).await;
    assert!(start.elapsed() > Duration::from_millis(600), "it was not late");
    assert_eq!(*transport.health().borrow(), Health::Well, "slow is not lost");
}

#[tokio::test]
async fn a_cut_anywhere_in_a_frame_loses_nothing() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let cuts = [1, 7, 8, 30, 333, 4_444];
    for bytes in cuts {
        let before = wire.ended();
        wire.treat(Manner::CutAfter(bytes));
        all_arrive(&transport, &queue, 200).await;
        assert!(wire.ended() > before, "it was not cut after {bytes} bytes");
    }
}

/// A connection that goes whenever a message is sent says nothing of the message, however often it does.
#[tokio::test]
async fn what_no_connection_outlives_for_long_is_sent_until_one_does() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    wire.treat(Manner::CutAt("cut here"));
    let publisher = transport.publisher().await.unwrap();
    let message = Message { id: "cut here".into(), ..message(0) };
    let publishing = publisher.publish(vec![to(&queue, message)]);
    let mending = async {
        while wire.ended() < 11 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        wire.treat(Manner::Well);
    };
    let (answers, ()) = within(async { tokio::join!(publishing, mending) }).await;
    assert_eq!(answers, [Published::Stored]);
}

#[tokio::test]
async fn a_broker_that_is_heard_no_more_is_found_out_by_its_heartbeats() {
    let wire = Wire::lay().await;
    let config = AmqpConfig::new(&format!("{}?heartbeat=2", wire.url())).unwrap();
    let transport = within(AmqpTransport::connect(config)).await.unwrap();
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    within(transport.open_lane(&lane)).await.unwrap();
    let mut health = transport.health();
    wire.treat(Manner::Deaf);
    let publishing = tokio::spawn({
        let (publisher, queue) = (transport.publisher().await.unwrap(), QueueRole::Tasks.of(&lane));
        async move { publisher.publish(numbered(&queue, 0..10)).await }
    });
    becomes(&mut health, |health| matches!(health, Health::Away(_))).await;
    assert!(wire.ended() > 0 && !publishing.is_finished());
    wire.treat(Manner::Well);
    becomes(&mut health, |health| *health == Health::Well).await;
    assert_eq!(within(publishing).await.unwrap(), vec![Published::Stored; 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_low_on_memory_says_so_takes_nothing_and_still_delivers() {
    let broker = Own::start().await;
    let transport = AmqpTransport::connect(AmqpConfig::new(&broker.url()).unwrap()).await.unwrap();
    let lane = Lane::default();
    transport.open_lane(&lane).await.unwrap();
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..2)).await;
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    let mut health = transport.health();

    broker.alarm(true).await;
    // Nothing is published here, and it is noticed all the same.
    becomes(&mut health, |health| matches!(health, Health::Blocked(why) if why.contains("memory"))).await;
    let publishing = tokio::spawn({
        let (publisher, batch) = (transport.publisher().await.unwrap(), numbered(&queue, 2..3));
        async move { publisher.publish(batch).await }
    });
    for id in ["0", "1"] {
        let delivery = take(&mut consumer, 1).await.remove(0);
        assert_eq!(delivery.message.id, id);
        delivery.receipt.ack(); // which gets through, or the second would not come
    }
    nothing_comes(&mut consumer).await;

    // Lost while it is blocked: it comes back, and is blocked again.
    let closing = broker.with(|broker| broker.ctl(&["close_all_connections", "drill"]).unwrap());
    // Together, since it may be back before the tool has ended.
    tokio::join!(becomes(&mut health, |health| matches!(health, Health::Away(_))), closing);
    becomes(&mut health, |health| matches!(health, Health::Blocked(_))).await;
    assert!(!publishing.is_finished());

    broker.alarm(false).await;
    becomes(&mut health, |health| *health == Health::Well).await;
    assert_eq!(within(publishing).await.unwrap(), [Published::Stored]);
    assert_eq!(ids(&take(&mut consumer, 1).await), ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_a_memory_alarm_and_its_bar_says_so() {
    let broker = Own::start().await;
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let (_sink, _worker) = (start("sink"), start("worker --slots 1"));
    let mut submitted = start("producer submit spin --tasks 10000 --micros 500 --batch 10 --wait");
    let line = submitted.says("job ").await;
    let job = line.strip_prefix("job ").unwrap();
    site.first_outcomes(job).await;
    broker.alarm(true).await;
    submitted.says("broker blocked: low on memory").await;
    broker.alarm(false).await;
    let ended = submitted.end().await;
    assert!(ended.stderr.contains("the broker is well again"), "{ended:?}");
    assert!(ended.answer().contains("49995000"), "{ended:?}");
    site.verify(job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_opening_a_job_at_a_blocked_broker_learns_its_name_and_why_it_took_so_long() {
    let broker = Own::start().await;
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    assert_eq!(start("gristmill setup").end().await.code, 0);
    broker.alarm(true).await;
    let mut submitted = start("producer submit spin --tasks 10");
    let line = submitted.says("the broker has not taken the job yet").await;
    assert!(line.contains("low on memory") && !line.contains("sink"), "{line}");
    submitted.signal("-INT").await;
    let ended = submitted.end().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (130, ""), "{ended:?}");
    let job = ended.stderr.split("`producer resume ").nth(1).and_then(|rest| rest.split('`').next()).unwrap();
    assert!(ended.stderr.contains(&format!("job {job} may be open")), "{ended:?}");
    assert!(ended.stderr.contains(&format!("`producer cancel {job}")), "{ended:?}");

    broker.alarm(false).await;
    let (_sink, _worker) = (start("sink"), start("worker --slots 1"));
    let resumed = start(&format!("producer resume {job} --wait")).end().await;
    assert!(resumed.answer().contains("10 tasks, sum 45"), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_does_not_confirm_is_sent_again_on_another_channel() {
    let broker = Own::start().await;
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let (_sink, mut worker) = (start("sink"), start("worker --slots 1"));
    worker.says("taking tasks").await;
    let process = format!("whereis('%2F_{}')", site.queue(QueueRole::Tasks));
    broker.eval(format!("ok = sys:suspend({process})")).await;
    let mut submitted = start("producer submit spin --tasks 100 --wait");
    submitted.says("without an answer").await;
    broker.eval(format!("ok = sys:resume({process})")).await;
    let ended = submitted.end().await;
    assert!(ended.answer().contains("100 tasks, sum 4950"), "{ended:?}");
    site.verify(ended.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_outlasts_the_brokers_patience_is_counted_once() {
    let broker = Own::start().await;
    // It looks at every channel three times a second, and takes back what is unsettled for a second.
    for (setting, milliseconds) in [("channel_tick_interval", 300), ("consumer_timeout", 1_000)] {
        broker.eval(format!("application:set_env(rabbit, {setting}, {milliseconds})")).await;
    }
    let url = broker.url();
    let site = crate::harness::Site::new();
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let (_sink, mut worker) = (start("sink"), start("worker --slots 1"));
    let submitted = start("producer submit spin --tasks 2 --micros 2500000 --batch 1 --wait");
    worker.says("delivery acknowledgement").await;
    let ended = submitted.end().await;
    assert!(ended.answer().contains("2 tasks, sum 1"), "{ended:?}");
    assert!(!ended.stderr.contains("interrupted"), "whoever only reads holds nothing: {ended:?}");
    let job = ended.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    site.verify(&job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_hand_on_results_ends_and_eats_nothing() {
    let broker = Own::start().await;
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
    let half = start("worker --slots 1", &url.replace("guest:guest", "half:half")).end().await;
    assert_eq!(half.code, 3, "{half:?}");
    assert!(half.stderr.contains("does not let us publish to"), "{half:?}");
    let _worker = start("worker --slots 1", &url);
    let ended = submitted.end().await;
    assert!(ended.answer().contains("100 tasks, sum 4950"), "{ended:?}");
}
