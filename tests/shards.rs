//! Lanes with several tasks queues.

use std::time::Duration;

use gristmill_shared::{Queue, Shards};

use crate::harness::{OwnBroker, Process, Site, within};

/// Waits until the shards hold so many messages each; no number for a queue that is not there. RabbitMQ counts the messages
/// of a quorum queue every 5 s.
async fn expect_held(broker: &OwnBroker, shards: &[Queue], expected: [Option<u64>; 3]) {
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

async fn taking_tasks(site: &Site, words: &str) -> Process {
    let mut worker = site.start(words);
    worker.says("taking tasks").await;
    worker
}

async fn left(worker: Process) {
    let ended = worker.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_make_shards_a_producer_fills_them_and_every_worker_takes_from_all() {
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let shards = shards(&site, 3);

    let refused = site.run("producer submit spin --tasks 10 --shards 3").await;
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{refused:?}");
    assert!(refused.stderr.contains("has 1 of the 3 shards"), "{refused:?}");
    assert!(refused.stderr.contains("(hint: start a worker with --shards 3 first"), "{refused:?}");
    expect_held(&broker, &shards, [Some(0), None, None]).await; // a producer makes no shard

    left(taking_tasks(&site, "worker --slots 1 --shards 3").await).await;
    let sink = site.start("sink");
    // One that wants fewer, alone; then two.
    for workers in
        [&["worker --slots 1"][..], &["worker --slots 1 --shards 3", "worker --slots 1 --shards 2"]]
    {
        let submitted = site.run("producer submit spin --tasks 300 --batch 1 --shards 3").await;
        let job = submitted.answer().to_owned();
        expect_held(&broker, &shards, [Some(100); 3]).await; // they are filled in turn
        let mut at_work = Vec::new();
        for words in workers {
            at_work.push(taking_tasks(&site, words).await);
        }
        let waited = site.run(&format!("producer wait {job}")).await;
        assert!(waited.answer().contains("44850"), "{waited:?}");
        let verified = site.verify(&job).await;
        assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(300), Some(0)));
        for worker in at_work {
            left(worker).await;
        }
        expect_held(&broker, &shards, [Some(0); 3]).await;
    }
    left(sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_in_the_middle_of_a_job_over_shards_costs_time_only() {
    const TASKS: u64 = 10_000;
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let sink = site.start("sink");
    let workers = [
        taking_tasks(&site, "worker --slots 1 --shards 3").await,
        taking_tasks(&site, "worker --slots 1").await,
    ];
    broker.written_down().await;
    let mut producer = site
        .start(&format!("producer submit spin --tasks {TASKS} --micros 2000 --batch 5 --shards 3 --wait"));
    let job = producer.says("job ").await.trim_start_matches("job ").to_owned();
    site.first_outcomes(&job).await;
    broker.with(|broker| broker.kill().unwrap()).await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert!(shown["account"]["done"].as_u64() < Some(TASKS), "it was killed too late: {shown}");
    broker.with(|broker| broker.restart().unwrap()).await;
    let ended = within("the job's end", producer.end()).await;
    assert!(ended.answer().contains(&(TASKS * (TASKS - 1) / 2).to_string()), "{ended:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(TASKS), Some(0)));
    for process in workers.into_iter().chain([sink]) {
        left(process).await;
    }
    expect_held(&broker, &shards(&site, 3), [Some(0); 3]).await;
}
