//! Jobs whose tasks got lost, and how they are found and sent again.

use gristmill::testing::LocalBroker;
use gristmill_shared::QueueRole;
use lapin::{
    Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueuePurgeOptions},
    types::FieldTable,
};

use crate::{
    broker_url,
    harness::{Process, Site, within},
};

/// The id in the line `job ID` that a producer says when it waits.
async fn job_of(producer: &mut Process) -> String {
    producer.says("job ").await.trim_start_matches("job ").to_owned()
}

/// Throws away what waits in the site's `tasks`, past our own code, and says how many messages that were.
async fn purge_tasks(site: &Site) -> u32 {
    let connection = Connection::connect(&broker_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = site.queue(QueueRole::Tasks).to_string();
    let purged = channel.queue_purge(queue.clone().into(), QueuePurgeOptions::default()).await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
    purged
}

#[tokio::test]
async fn who_submits_to_a_lane_that_no_sink_has_served_is_told() {
    let site = Site::new();
    let lane = site.queue(QueueRole::Tasks).lane;
    let words = "producer submit spin --tasks 10 --micros 1";
    let told = format!("no sink has served the lane {lane} yet (hint: is that its name?");
    let alone = site.run(words).await;
    assert!(alone.code == 0 && alone.stderr.contains(&told), "{alone:?}");
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let served = site.run(words).await;
    assert!(served.code == 0 && !served.stderr.contains("no sink"), "{served:?}");
}

#[tokio::test]
async fn tasks_that_were_purged_are_named_and_sent_again() {
    let site = Site::new();
    let mut sink = site.start("sink --stall-after 3s");
    sink.says("serving").await;
    let mut worker = site.start("worker --slots 1");
    worker.says("taking tasks").await;
    let mut submit = site.start("producer submit spin --tasks 2000 --micros 2000 --batch 10 --wait");
    let job = job_of(&mut submit).await;
    site.shown(&job, |shown| shown["sealed"] == true && shown["account"]["done"].as_u64() > Some(0)).await;
    let purged = purge_tasks(&site).await;
    assert!(purged > 10, "only {purged} messages were purged");

    // On a slow machine it may have stalled before, and the worker may hold some tasks for long.
    let lost = u64::from(purged) * 10;
    let is_told =
        |shown: &serde_json::Value| shown["stalled_ms"].is_u64() && shown["missing"]["tasks"] == lost;
    let shown = site.shown(&job, is_told).await;
    let missing = shown["missing"]["tasks"].as_u64().unwrap();
    let listed = shown["missing"]["ranges"].as_array().unwrap().iter();
    let listed: u64 =
        listed.map(|range| range["end"].as_u64().unwrap() - range["start"].as_u64().unwrap()).sum();
    assert_eq!((missing, listed), (lost, lost), "{shown}");
    let first = &shown["missing"]["ranges"][0];
    let first = format!("missing: {}-{}", first["start"], first["end"].as_u64().unwrap() - 1);
    let told = site.run(&format!("sink show {job}")).await;
    assert!(told.stdout.contains("no outcome for") && told.stdout.contains(&first), "{told:?}");
    assert!(told.stderr.contains(&format!("producer resume {job} --missing")), "{told:?}");
    submit.says(&format!("no outcome for a while; {first}")).await;
    assert!(sink.said("the job stalls:") > 0);

    let resumed = site.run(&format!("producer resume {job} --missing --wait")).await;
    assert!(resumed.answer().contains("1999000"), "{resumed:?}");
    let again = resumed.stderr.lines().find(|line| line.contains("missing tasks sent again")).unwrap();
    assert_eq!(again.replace(',', ""), format!("{missing} missing tasks sent again"));
    assert!(submit.end().await.answer().contains("1999000"));
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["duplicates"].as_u64()), (Some(2000), Some(0)));
    sink.says("stalls no more").await;

    let nothing = site.run(&format!("producer resume {job} --missing")).await;
    assert!(nothing.code == 0 && nothing.stderr.contains("has ended"), "{nothing:?}");
}

#[tokio::test]
async fn tasks_that_only_wait_for_a_worker_are_not_called_lost() {
    let site = Site::new();
    let mut sink = site.start("sink --stall-after 200ms");
    sink.says("serving").await;
    let job = site.run("producer submit spin --tasks 100").await.answer().to_owned();
    let stalls = sink.says("the job stalls:").await;
    assert!(stalls.contains("are workers running?"), "{stalls}");
    site.shown(&job, |shown| shown["stalled_ms"].is_u64()).await;
    let told = site.run(&format!("sink show {job}")).await;
    assert!(
        told.stdout.contains("missing: 0-99") && told.stderr.contains("is a worker running?"),
        "{told:?}"
    );
    assert!(!told.stdout.contains("lost"), "{told:?}");
    // Sent twice, run twice, counted once.
    let resumed = site.run(&format!("producer resume {job} --missing")).await;
    assert!(resumed.stderr.contains("100 missing tasks sent again"), "{resumed:?}");
    let _worker = site.start("worker --slots 1");
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.answer().contains("4950"), "{waited:?}");
    let verified = site.verify(&job).await;
    assert_eq!(verified["done"], 100);
}

/// Does something with a broker on a thread that runs nothing async.
async fn with<T: Send + 'static>(
    mut broker: LocalBroker,
    what: impl FnOnce(&mut LocalBroker) -> T + Send + 'static,
) -> (LocalBroker, T) {
    let (sender, done) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let result = what(&mut broker);
        drop(sender.send((broker, result)));
    });
    within("the broker", done).await.expect("the thread panicked")
}

#[tokio::test]
async fn a_broker_that_forgets_everything_costs_time_and_nothing_else() {
    let broker = std::thread::spawn(LocalBroker::start).join().unwrap().unwrap();
    let (site, url) = (Site::new(), broker.url());
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let mut sink = start("sink --stall-after 2s");
    sink.says("serving").await;
    let worker = start("worker --slots 1");
    // One job with more batches than the queue takes, whose split is under way; and one that is sent and sealed.
    let mut submit = start("producer submit spin --tasks 4000 --micros 3000 --batch 2 --wait");
    let split = job_of(&mut submit).await;
    let sealed = start("producer submit spin --tasks 40 --micros 500 --batch 2").end().await;
    let sealed = sealed.answer().to_owned();
    site.first_outcomes(&split).await;
    // Killed, so that nothing comes back by itself: what is left is on the disks of sink and producer.
    futures::future::join_all([sink.kill(), worker.kill(), submit.kill()]).await;
    let shown = site.json(&format!("sink show {split} --json")).await;
    assert_eq!((&shown["state"], &shown["sealed"]), (&"running".into(), &false.into()), "{shown}");

    let (broker, before) = with(broker, |broker| {
        let queues = broker.ctl(&["list_queues", "name", "messages"]).unwrap();
        for command in ["stop_app", "reset", "start_app"] {
            broker.ctl(&[command]).unwrap();
        }
        assert!(!broker.ctl(&["list_queues", "name"]).unwrap().contains("gristmill"));
        queues
    })
    .await;
    assert!(before.contains(".tasks\t"), "{before}");

    let _roles = (start("sink --stall-after 2s"), start("worker --slots 2"));
    for (job, sum) in [(&split, "7998000"), (&sealed, "780")] {
        let resumed = start(&format!("producer resume {job} --missing --wait")).end().await;
        assert!(resumed.answer().contains(sum), "{resumed:?}");
        site.verify(job).await;
    }
    drop(broker);
}

#[tokio::test]
async fn without_a_sink_nobody_knows_what_is_missing() {
    let site = Site::new();
    let job = site.run("producer submit spin --tasks 10").await.answer().to_owned();
    let mut resume = site.start(&format!("producer resume {job} --missing"));
    resume.says("no sink has answered yet").await;
    // The question waits for one.
    let _sink = site.start("sink");
    let ended = resume.end().await;
    assert!(ended.code == 0 && ended.stderr.contains("10 missing tasks sent again"), "{ended:?}");
}
