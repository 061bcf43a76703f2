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

/// Returns the id in the line `job ID` that a waiting producer prints.
async fn read_job_id(producer: &mut Process) -> String {
    producer.wait_for("job 01").await.trim_start_matches("job ").to_owned()
}

/// Purges the site's `tasks` without our own code, and returns the number of messages.
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

/// A job on a lane that no sink has served yet gets a warning.
#[tokio::test]
async fn unserved_lane_is_a_warning() {
    let site = Site::new();
    let lane = site.queue(QueueRole::Tasks).lane;
    let words = "producer submit spin --tasks 10 --micros 1";
    let told = format!("no sink has served the lane {lane} yet (hint: is that its name?");
    let alone = site.run(words).await;
    assert!(alone.code == 0 && alone.stderr.contains(&told), "{alone:?}");
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let served = site.run(words).await;
    assert!(served.code == 0 && !served.stderr.contains("no sink"), "{served:?}");
}

/// Tasks that were purged are named and can be sent again.
#[tokio::test]
async fn purged_tasks_are_resent() {
    let site = Site::new();
    let mut sink = site.start("sink --stall-after 3s");
    sink.wait_for("serving").await;
    let mut worker = site.start("worker --slots 1");
    worker.wait_for("taking tasks").await;
    let mut submit = site.start("producer submit spin --tasks 2000 --micros 2000 --batch 10 --wait");
    let job = read_job_id(&mut submit).await;
    site.wait_shown(&job, |shown| shown["sealed"] == true && shown["account"]["done"].as_u64() > Some(0))
        .await;
    let purged = purge_tasks(&site).await;
    assert!(purged > 10, "only {purged} messages were purged");

    // On a slow machine it may have stalled before, and the worker may hold some tasks for long.
    let lost = u64::from(purged) * 10;
    let is_told =
        |shown: &serde_json::Value| shown["stalled_ms"].is_u64() && shown["missing"]["tasks"] == lost;
    let shown = site.wait_shown(&job, is_told).await;
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
    submit.wait_for(&format!("no outcome for a while; {first}")).await;
    assert!(sink.count_lines("the job stalls:") > 0);

    let resumed = site.run(&format!("producer resume {job} --missing --wait")).await;
    assert!(resumed.answer().contains("1999000"), "{resumed:?}");
    let again = resumed.stderr.lines().find(|line| line.contains("missing tasks sent again")).unwrap();
    assert_eq!(again.replace(',', ""), format!("{missing} missing tasks sent again"));
    assert!(submit.output().await.answer().contains("1999000"));
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["duplicates"].as_u64()), (Some(2000), Some(0)));
    sink.wait_for("no longer stalls").await;

    let nothing = site.run(&format!("producer resume {job} --missing")).await;
    assert!(nothing.code == 0 && nothing.stderr.contains("has ended"), "{nothing:?}");
}

/// Tasks that only wait for a worker are missing, and not called lost.
#[tokio::test]
async fn waiting_tasks_are_not_called_lost() {
    let site = Site::new();
    let mut sink = site.start("sink --stall-after 200ms");
    sink.wait_for("serving").await;
    let job = site.run("producer submit spin --tasks 100").await.answer().to_owned();
    let stalls = sink.wait_for("the job stalls:").await;
    assert!(stalls.contains("are workers running?"), "{stalls}");
    site.wait_shown(&job, |shown| shown["stalled_ms"].is_u64()).await;
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

/// Calls `what` with a broker, on a thread without async code.
async fn with_broker<T: Send + 'static>(
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

/// A broker that forgets everything only costs time.
#[tokio::test]
async fn broker_reset_loses_no_outcome() {
    let broker = std::thread::spawn(LocalBroker::start).join().unwrap().unwrap();
    let (site, url) = (Site::new(), broker.url());
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let mut sink = start("sink --stall-after 2s");
    sink.wait_for("serving").await;
    let worker = start("worker --slots 1");
    // One job with more batches than the queue takes, whose split is under way; and one that is
    // sent and sealed.
    let mut submit = start("producer submit spin --tasks 4000 --micros 3000 --batch 2 --wait");
    let split = read_job_id(&mut submit).await;
    let sealed = start("producer submit spin --tasks 40 --micros 500 --batch 2").output().await;
    let sealed = sealed.answer().to_owned();
    site.wait_for_outcomes(&split).await;
    // Killed, so that nothing comes back by itself: only the disks of sink and producer have the
    // jobs.
    futures::future::join_all([sink.kill(), worker.kill(), submit.kill()]).await;
    let shown = site.json(&format!("sink show {split} --json")).await;
    assert_eq!((&shown["state"], &shown["sealed"]), (&"running".into(), &false.into()), "{shown}");

    let (broker, before) = with_broker(broker, |broker| {
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
        let resumed = start(&format!("producer resume {job} --missing --wait")).output().await;
        assert!(resumed.answer().contains(sum), "{resumed:?}");
        site.verify(job).await;
    }
    drop(broker);
}

/// Only a sink knows which tasks are missing, so `producer resume --missing` waits for one.
#[tokio::test]
async fn resume_missing_waits_for_a_sink() {
    let site = Site::new();
    let job = site.run("producer submit spin --tasks 10").await.answer().to_owned();
    let mut resume = site.start(&format!("producer resume {job} --missing"));
    resume.wait_for("no sink has answered yet").await;
    // The request waits for a sink.
    let _sink = site.start("sink");
    let ended = resume.output().await;
    assert!(ended.code == 0 && ended.stderr.contains("10 missing tasks sent again"), "{ended:?}");
}
