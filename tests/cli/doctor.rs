//! The findings of `gristmill doctor`.

use gristmill_shared::{Address, Message, Outgoing, Published, QueueRole, RetryDelay, Shards};
use lapin::{
    Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;

use crate::{
    harness::{OwnBroker, Site, broker::broker_url, within},
    security::rights::{RestrictedFleet, USER_PREFIX},
};

/// Returns the verdict on a check, and its finding with the hint.
fn finding<'a>(report: &'a Value, check: &str) -> (&'a str, String) {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|it| it["check"].as_str().unwrap().starts_with(check));
    let found = found.unwrap_or_else(|| panic!("no {check}: {report:#}"));
    (found["verdict"].as_str().unwrap(), format!("{} {}", found["found"], found["hint"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_fleet_has_no_problem() {
    let site = Site::new();
    assert_eq!(site.run("gristmill setup").await.code, 0);
    let mut sink = site.start("sink -v");
    let worker = site.start("worker --slots 3");
    within("a worker", async {
        while finding(&site.json("gristmill doctor --json").await, "workers").0 != "ok" {}
    })
    .await;
    let ended = site.run("gristmill doctor --json").await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, 0, "{report:#}");
    for check in [
        "connection",
        "version",
        "alarms",
        "lane",
        "arguments",
        "rights",
        "max_message_size",
        "sink",
        "workers",
        "clock",
    ] {
        assert_eq!(finding(&report, check).0, "ok", "{check}: {report:#}");
    }
    assert!(finding(&report, "version").1.contains("RabbitMQ "), "{report:#}");
    assert!(finding(&report, "rights").1.contains("producer, worker, sink, operator"), "{report:#}");
    assert!(finding(&report, "workers").1.contains("heard: 1, with 3 slots"), "{report:#}");
    let (verdict, found) = finding(&report, "consumer_timeout");
    assert!(verdict == "unseen" && found.contains("rabbitmqctl eval"), "{report:#}");
    // The text has a line for each finding.
    let lines = site.run("gristmill doctor").await.stdout;
    assert_eq!(lines.lines().count(), report["findings"].as_array().unwrap().len(), "{lines}");
    assert_eq!(worker.stop().await.code, 0);
    assert_eq!(sink.count_lines("WARN"), 0, "doctor disturbed the sink");
    sink.signal("-TERM").await;
    sink.wait().await;
}

/// Doctor takes no message and declares no queue.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_changes_nothing() {
    let site = Site::new();
    let report = site.json("gristmill doctor --json").await;
    let (verdict, found) = finding(&report, "lane");
    let queue = site.queue(QueueRole::Tasks).to_string();
    assert!(
        verdict == "warning" && found.contains(&queue) && found.contains("gristmill setup"),
        "{report:#}"
    );
    let again = site.json("gristmill doctor --json").await;
    assert_eq!(finding(&again, "lane"), (verdict, found), "doctor declared something");

    let job = site.run("producer submit spin --tasks 40 --micros 1 --batch 10").await;
    job.answer();
    let waiting = |report: &Value| finding(report, "workers").1;
    let before = waiting(&site.json("gristmill doctor --json").await);
    assert!(before.contains("batches that wait: ") && !before.contains("wait: 0"), "{before}");
    assert_eq!(waiting(&site.json("gristmill doctor --json").await), before);
    let transport = site.transport().await;
    let mut consumer = transport.consume(&site.queue(QueueRole::Tasks), 10).await.unwrap();
    let delivery = within("a task", consumer.recv(1)).await.unwrap().remove(0);
    assert!(!delivery.is_redelivered(), "it was taken and given back");
}

/// A lane that is partly there is a problem, also for a user who may declare the rest.
#[tokio::test(flavor = "multi_thread")]
async fn missing_queue_is_a_problem() {
    let site = Site::new();
    assert_eq!(site.run("gristmill setup").await.code, 0);
    let connection = Connection::connect(&broker_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let again = site.queue(QueueRole::Requeued);
    channel.queue_delete(again.to_string().into(), QueueDeleteOptions::default()).await.unwrap();
    let ended = site.run("gristmill doctor --json").await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, 1, "{report:#}");
    let (verdict, found) = finding(&report, "lane");
    assert!(verdict == "problem" && found.contains(&format!("missing: the queue {again}")), "{report:#}");
    assert!(found.contains(&format!("`gristmill setup --lane {}`", again.lane)), "{report:#}");
    assert_eq!(site.run("gristmill setup").await.code, 0);
    assert_eq!(finding(&site.json("gristmill doctor --json").await, "lane").0, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_broker_is_a_problem() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let site = Site::at(format!("amqp://me:sesame@{closed}"));
    let ended = site.run("gristmill doctor").await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stdout.starts_with("problem  connection") && ended.stdout.contains("refused"), "{ended:?}");
    assert!(!format!("{ended:?}").contains("sesame"), "{ended:?}");
    let wrong = Site::at(broker_url().replace("guest:guest", "guest:sesame"));
    let ended = wrong.run("gristmill doctor").await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stdout.contains("problem  connection") && ended.stdout.contains("password"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_alarm_is_named() {
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    assert_eq!(site.run("gristmill setup").await.code, 0);
    broker.ctl("set_vm_memory_high_watermark 0.00001").await;
    println!("{}", site.run("gristmill doctor").await.stdout);
    let ended = site.run("gristmill doctor --json").await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, 1, "{report:#}");
    let (verdict, found) = finding(&report, "alarms");
    assert!(verdict == "problem" && found.contains("low on memory"), "{report:#}");
    assert_eq!(finding(&report, "arguments").0, "ok", "{report:#}");
    let (verdict, found) = finding(&report, "rights");
    assert!(verdict == "unseen" && found.contains("not tested"), "{report:#}");
    broker.ctl("set_vm_memory_high_watermark 0.6").await;
    let report = site.json("gristmill doctor --json").await;
    assert_eq!(finding(&report, "alarms").0, "ok", "{report:#}");
}

/// A broker where nothing is set up is one warning, and no check fails.
#[tokio::test(flavor = "multi_thread")]
async fn empty_broker_is_one_warning() {
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let ended = site.run("gristmill doctor --json").await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, 0, "{report:#}");
    let (verdict, found) = finding(&report, "lane");
    let setup = format!("`gristmill setup --lane {}`, or the first sink", site.queue(QueueRole::Tasks).lane);
    assert!(verdict == "warning" && found.contains(&setup), "{report:#}");
    assert!(found.contains("nothing of Gristmill is set up here yet") && !found.contains("queue"), "{found}");
    assert_eq!(finding(&report, "alarms").0, "ok", "{report:#}");
    assert!(finding(&report, "rights").1.contains("(missing entities were not tested)"), "{report:#}");
    for said in ["NOT_FOUND", "failed", "lost the connection"] {
        assert!(!ended.stdout.contains(said), "{said}: {report:#}");
    }
    broker.ctl("set_vm_memory_high_watermark 0.00001").await;
    let report = site.json("gristmill doctor --json").await;
    let (verdict, found) = finding(&report, "alarms");
    assert!(verdict == "problem" && found.contains("low on memory"), "{report:#}");
}

/// Batches in the retry, `again` and suspect queues are counted.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_retries_are_counted() {
    let site = Site::new();
    let transport = site.transport().await;
    let roles = [QueueRole::Requeued, QueueRole::Suspect, QueueRole::Suspect];
    let retries = [QueueRole::Retry(RetryDelay::TenMinutes); 3];
    let sent = roles
        .into_iter()
        .chain(retries)
        .map(|role| Outgoing { to: Address::Queue(site.queue(role)), message: Message::default() });
    let answers = transport.publisher().await.unwrap().publish(sent.collect()).await;
    assert!(answers.iter().all(|answer| *answer == Published::Confirmed), "{answers:?}");
    let report = site.json("gristmill doctor --json").await;
    let (verdict, found) = finding(&report, "workers");
    let counted = "batches that wait: 0, to be tried again: 4, suspects: 2;";
    assert!(verdict == "warning" && found.contains(counted), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn drifted_argument_is_named() {
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    assert_eq!(site.run("gristmill setup --shards 3").await.code, 0);
    let lane = site.queue(QueueRole::Dead).lane;
    let dead_letters =
        format!("x-dead-letter-exchange=gristmill.dead x-dead-letter-routing-key=gristmill.{lane}.dead");
    let again =
        format!("x-dead-letter-exchange=gristmill.work x-dead-letter-routing-key=gristmill.{lane}.again");
    let quorum = "x-queue-type=quorum x-overflow=reject-publish x-dead-letter-strategy=at-least-once";
    // A queue, its arguments without the drifted one, the finding and the hint.
    let drifted = [
        (
            format!("gristmill.{lane}.dead"),
            "x-queue-type=quorum x-overflow=reject-publish x-delivery-limit=7".to_owned(),
            "x-delivery-limit is 7 there and would be 1000000 here",
            format!("run `gristmill setup --lane {lane} --shards 3`, or use another --lane"),
        ),
        (
            format!("gristmill.{lane}.tasks.2"),
            format!("{quorum} x-delivery-limit=1000000 {dead_letters} x-max-length=5 x-max-length-bytes=67108864"),
            "x-max-length is 5 there and would be 1000 here",
            "when it is empty, delete it there".into(),
        ),
        (
            format!("gristmill.{lane}.retry.1s"),
            format!("{quorum} x-delivery-limit=1000000 {again}"),
            "x-message-ttl is none there and would be 1000 here",
            "when it is empty, delete it there".into(),
        ),
        (
            format!("gristmill.{lane}.results"),
            "x-queue-type=quorum x-overflow=reject-publish x-delivery-limit=1000000 x-max-length-bytes=268435456".into(),
            "x-single-active-consumer is none there and would be true here",
            "when it is empty, delete it there".into(),
        ),
        (
            "gristmill.journal".into(),
            "x-queue-type=stream x-max-age=1D x-max-length-bytes=67108864 x-stream-max-segment-size-bytes=4194304".into(),
            "x-max-age is 1D there and would be 7D here",
            "all lanes share it, so when no job runs on any".into(),
        ),
    ];
    let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for (queue, arguments, ..) in &drifted {
        let queue = || queue.as_str().into();
        channel.queue_delete(queue(), QueueDeleteOptions::default()).await.unwrap();
        let mut table = FieldTable::default();
        for (name, value) in arguments.split(' ').filter_map(|argument| argument.split_once('=')) {
            let text = || AMQPValue::LongString(value.into());
            table.insert(name.into(), value.parse().map_or_else(|_| text(), AMQPValue::LongLongInt));
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue(), options, table).await.unwrap();
    }
    let ended = site.run("gristmill doctor").await;
    println!("{}", ended.stdout);
    assert_eq!(ended.code, 1, "{ended:?}");
    let problems: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("problem ")).collect();
    assert_eq!(problems.len(), drifted.len(), "{problems:#?}");
    for (queue, _, found, hint) in drifted {
        let found = format!("the queue {queue}: {found}");
        assert!(
            problems.iter().any(|line| line.contains(&found) && line.contains(&hint)),
            "{found}: {problems:#?}"
        );
    }
}

/// A tasks queue without a consumer is a problem.
#[tokio::test(flavor = "multi_thread")]
async fn unconsumed_shard_is_named() {
    let site = Site::new();
    let mut worker = site.start("worker --slots 1 --shards 2");
    worker.wait_for("taking tasks").await;
    assert_eq!(site.run("gristmill doctor").await.code, 0);
    assert_eq!(site.run("gristmill setup --shards 3").await.code, 0);
    let ended = site.run("gristmill doctor --json").await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, 1, "{report:#}");
    let third = Shards::new(3).unwrap().last();
    let (verdict, found) = finding(&report, "workers");
    assert!(verdict == "problem" && found.contains("restart the workers"), "{report:#}");
    assert!(found.contains(&format!("no consumer on {}", site.queue(third))), "{report:#}");
    let (_, found) = finding(&report, "lane");
    assert!(found.contains("3 tasks queues"), "{report:#}");
    assert_eq!(worker.stop().await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_right_is_named() {
    let fleet = RestrictedFleet::get().await;
    for role in ["producer", "worker", "sink", "operator"] {
        let ended = fleet.run(role, &format!("gristmill doctor --json --role {role}")).await;
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(ended.code, 0, "{role}: {report:#}");
        assert_eq!(finding(&report, "rights").0, "ok", "{role}: {report:#}");
        let compared = finding(&report, "arguments").0;
        assert_eq!(compared, if role == "operator" { "ok" } else { "unseen" }, "{role}: {report:#}");
    }
    for (user, role, lacks) in [
        ("worker", "sink", "read right on the queue"),
        ("worker", "sink", "write right on the exchange gristmill.facts"),
        ("producer", "worker", "read right on the queue"),
        ("sink", "operator", "configure right on the queue"),
    ] {
        let ended = fleet.run(user, &format!("gristmill doctor --json --role {role}")).await;
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(ended.code, 1, "{user}: {report:#}");
        let (verdict, found) = finding(&report, "rights");
        assert_eq!(verdict, "problem", "{report:#}");
        assert!(found.contains(&format!("the user {USER_PREFIX}{user} lacks the {lacks}")), "{report:#}");
    }
    // A user who may declare, and not bind.
    fleet.broker.ctl("add_user mute secret").await;
    fleet.broker.ctl(r"set_permissions mute ^gristmill\. ^gristmill\.(work|dead)$ ^gristmill\.").await;
    let url = fleet.broker.url().replace("guest:guest", "mute:secret");
    let words = "gristmill doctor --role operator";
    let ended = fleet.site.start_with(words, |command| command.env("GRISTMILL_BROKER", url)).output().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let lacks =
        format!("the user mute lacks the write right on the queue {}", fleet.site.queue(QueueRole::Tasks));
    assert!(ended.stdout.contains(&lacks), "{}", ended.stdout);
    // A user with one right less than a worker's, and no role given.
    let suspect = fleet.site.queue(QueueRole::Suspect).to_string();
    let lane = fleet.site.queue(QueueRole::Suspect).lane;
    fleet.broker.ctl("add_user halfway secret").await;
    let rights = format!(
        r"set_permissions halfway ^$ ^gristmill\.(work|results|dead|events)$ ^gristmill\.({lane}\.(tasks(\.2)?|again)|journal)$"
    );
    fleet.broker.ctl(&rights).await;
    let url = fleet.broker.url().replace("guest:guest", "halfway:secret");
    let doctor = fleet.site.start_with("gristmill doctor", |command| command.env("GRISTMILL_BROKER", url));
    let ended = doctor.output().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let lacks = format!("the user halfway lacks the read right on the queue {suspect}");
    println!("{}", ended.stdout);
    assert!(ended.stdout.contains(&lacks) && ended.stdout.contains("worker"), "{}", ended.stdout);
}
