//! Lanes with several tasks queues.

use std::time::Duration;

use gristmill_shared::{Queue, Shards};

use crate::harness::{OwnBroker, Process, Site, within};

/// Waits until the shards hold the expected numbers of messages; `None` is a queue that does not
/// exist. RabbitMQ counts the messages of a quorum queue every 5 s.
async fn wait_for_counts(broker: &OwnBroker, shards: &[Queue], expected: [Option<u64>; 3]) {
    within(&format!("the shards to hold {expected:?}"), async {
        loop {
            let queues = broker.ctl("list_queues name messages").await;
            let of = |shard: &Queue| {
                let name = shard.to_string();
                let line = queues.lines().find(|line| line.split_whitespace().next() == Some(&name));
                line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            };
            if shards.iter().map(of).eq(expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}

fn shards(site: &Site, number: u8) -> Vec<Queue> {
    Shards::new(number).unwrap().queues().map(|shard| site.queue(shard)).collect()
}

async fn start_worker(site: &Site, words: &str) -> Process {
    let mut worker = site.start(words);
    worker.wait_for("taking tasks").await;
    worker
}

async fn stop_cleanly(worker: Process) {
    let ended = worker.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// Workers declare shards, a producer fills them in turn, and every worker consumes all of them.
#[tokio::test(flavor = "multi_thread")]
async fn every_worker_consumes_all_shards() {
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let shards = shards(&site, 3);

    let refused = site.run("producer submit spin --tasks 10 --shards 3").await;
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{refused:?}");
    assert!(refused.stderr.contains("has 1 of the 3 shards"), "{refused:?}");
    assert!(refused.stderr.contains("(hint: start a worker with --shards 3 first"), "{refused:?}");
    wait_for_counts(&broker, &shards, [Some(0), None, None]).await; // a producer makes no shard

    stop_cleanly(start_worker(&site, "worker --slots 1 --shards 3").await).await;
    let sink = site.start("sink");
    // One worker that wants fewer shards, alone; then two workers.
    for workers in
        [&["worker --slots 1"][..], &["worker --slots 1 --shards 3", "worker --slots 1 --shards 2"]]
    {
        let submitted = site.run("producer submit spin --tasks 300 --batch 1 --shards 3").await;
        let job = submitted.answer().to_owned();
        wait_for_counts(&broker, &shards, [Some(100); 3]).await; // they are filled in turn
        let mut at_work = Vec::new();
        for words in workers {
            at_work.push(start_worker(&site, words).await);
        }
        let waited = site.run(&format!("producer wait {job}")).await;
        assert!(waited.answer().contains("44850"), "{waited:?}");
        let verified = site.verify(&job).await;
        assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(300), Some(0)));
        for worker in at_work {
            stop_cleanly(worker).await;
        }
        wait_for_counts(&broker, &shards, [Some(0); 3]).await;
    }
    stop_cleanly(sink).await;
}

/// A broker that is killed in the middle of a job over shards only costs time.
#[tokio::test(flavor = "multi_thread")]
async fn broker_kill_keeps_shards_exact() {
    const TASK_COUNT: u64 = 10_000;
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let sink = site.start("sink");
    let workers = [
        start_worker(&site, "worker --slots 1 --shards 3").await,
        start_worker(&site, "worker --slots 1").await,
    ];
    broker.sync_directory().await;
    let mut producer = site.start(&format!(
        "producer submit spin --tasks {TASK_COUNT} --micros 2000 --batch 5 --shards 3 --wait"
    ));
    let job = producer.wait_for("job 01").await.trim_start_matches("job ").to_owned();
    site.wait_for_outcomes(&job).await;
    broker.with(|broker| broker.kill().unwrap()).await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert!(shown["account"]["done"].as_u64() < Some(TASK_COUNT), "it was killed too late: {shown}");
    broker.with(|broker| broker.restart().unwrap()).await;
    let ended = within("the job's end", producer.output()).await;
    assert!(ended.answer().contains(&(TASK_COUNT * (TASK_COUNT - 1) / 2).to_string()), "{ended:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(TASK_COUNT), Some(0)));
    for process in workers.into_iter().chain([sink]) {
        stop_cleanly(process).await;
    }
    wait_for_counts(&broker, &shards(&site, 3), [Some(0); 3]).await;
}
