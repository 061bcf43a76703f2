//! Brokers that die, hang, starve and refuse in the middle of a job. Each belongs to its test.

use std::time::Duration;

use gristmill_shared::QueueRole;

use crate::harness::{OwnBroker, Process, Site, within};

/// Of 2 ms: `rabbitmqctl` may take seconds, and must come in the middle.
const TASKS: u64 = 10_000;

/// A job of ten seconds that two workers are in the middle of.
struct Fleet {
    broker: OwnBroker,
    site: Site,
    roles: [Process; 3],
    producer: Process,
    job: String,
    /// Of the roles, before the job.
    connections: String,
}

impl Fleet {
    async fn at_work(url_end: &str) -> Self {
        let broker = OwnBroker::start().await;
        let site = Site::at(broker.url() + url_end);
        let mut roles = ["sink", "worker --slots 1", "worker --slots 1"].map(|words| site.start(words));
        for (role, ready) in roles.iter_mut().zip(["serving", "taking tasks", "taking tasks"]) {
            role.says(ready).await;
        }
        broker.written_down().await;
        let connections = broker.ctl("list_connections pid").await;
        assert!(connections.lines().count() > roles.len(), "{connections}");
        let words = format!("producer submit spin --tasks {TASKS} --micros 3000 --batch 5 --wait");
        let mut producer = site.start(&words);
        let job = producer.says("job ").await.trim_start_matches("job ").to_owned();
        site.first_outcomes(&job).await;
        Self { broker, site, roles, producer, job, connections }
    }

    async fn done(&self) -> u64 {
        let shown = self.site.json(&format!("sink show {} --json", self.job)).await;
        shown["account"]["done"].as_u64().unwrap()
    }

    /// The fault is over, and came before the job's end: the answer is exact all the same, and nobody has left.
    async fn exact(self) -> serde_json::Value {
        let ended = self.producer.end().await;
        assert!(ended.answer().contains(&(TASKS * (TASKS - 1) / 2).to_string()), "{ended:?}");
        let verified = self.site.verify(&self.job).await;
        assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(TASKS), Some(0)));
        for role in self.roles {
            let ended = role.stop().await;
            assert_eq!(ended.code, 0, "{ended:?}");
        }
        self.site.json(&format!("sink show {} --json", self.job)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_in_the_middle_of_a_job_costs_time_only() {
    let fleet = Fleet::at_work("").await;
    fleet.broker.with(|broker| broker.kill().unwrap()).await;
    let done = fleet.done().await;
    assert!(done < TASKS, "it was killed too late");
    fleet.broker.with(|broker| broker.restart().unwrap()).await;
    fleet.exact().await;
}

/// As a network that is cut: everybody waits, gives the other up, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_silent_for_longer_than_the_heartbeat_costs_time_only() {
    let fleet = Fleet::at_work("?heartbeat=1").await;
    fleet.broker.with(|broker| broker.pause().unwrap()).await;
    tokio::time::sleep(Duration::from_secs(5)).await; // in which nothing can be seen
    let done = fleet.done().await;
    assert!(done < TASKS, "it fell silent too late");
    fleet.broker.with(|broker| broker.resume().unwrap()).await;
    within("every connection to be given up", async {
        let of_now = async || fleet.broker.ctl("list_connections pid").await;
        while of_now().await.lines().skip(1).any(|pid| fleet.connections.contains(pid)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    fleet.exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_short_of_memory_holds_everything_up_and_nothing_is_lost_or_done_twice() {
    let fleet = Fleet::at_work("").await;
    fleet.broker.ctl("set_vm_memory_high_watermark 0.000001").await;
    within("the alarm", async {
        while !fleet.broker.ctl("list_connections state").await.contains("block") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await; // for what was under way
    let held = fleet.done().await;
    assert!(held < TASKS, "it was short too late");
    tokio::time::sleep(Duration::from_secs(2)).await; // in which nothing happens
    assert_eq!(fleet.done().await, held, "results passed a broker that blocks");
    fleet.broker.ctl("set_vm_memory_high_watermark 0.4").await;
    let shown = fleet.exact().await;
    assert_eq!(shown["account"]["duplicates"], 0, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_under_its_consumers_is_made_anew() {
    let fleet = Fleet::at_work("").await;
    let again = fleet.site.queue(QueueRole::Again).to_string();
    fleet.broker.ctl(&format!("delete_queue {again}")).await;
    assert!(fleet.done().await < TASKS, "it was deleted too late");
    let Fleet { broker, site, .. } = &fleet;
    within("the queue to be there again", async {
        while !broker.ctl("list_queues name").await.contains(&again) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // And consumed again: a task that fails once comes back through it.
    let retried = site.run("producer submit spin --tasks 20 --fail-rate 0.3 --wait").await;
    assert!(retried.answer().contains("190"), "{retried:?}");
    fleet.exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_holds_the_producer_up_and_loses_nothing() {
    const LIMIT: usize = 1_000;
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let _sink = site.start("sink");
    let submitting = site.start("producer submit spin --tasks 3000 --batch 1 --wait");
    let tasks = site.queue(QueueRole::Tasks).to_string();
    let waiting = async || {
        let queues = broker.ctl("list_queues name messages").await;
        let line = queues.lines().find_map(|line| line.strip_prefix(&tasks));
        line.and_then(|count| count.trim().parse::<usize>().ok()).unwrap_or(0)
    };
    within("a full queue", async {
        while waiting().await < LIMIT {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await; // of tries
    let held = waiting().await;
    assert!((LIMIT..LIMIT + 256).contains(&held), "{held} messages in a queue that takes {LIMIT}");
    let _worker = site.start("worker --slots 2");
    let ended = submitting.end().await;
    assert!(ended.answer().contains("4498500"), "{ended:?}");
}
