//! Brokers that die, hang, starve and refuse in the middle of a job. Each belongs to its test.

use std::time::Duration;

use gristmill_shared::QueueRole;

use crate::harness::{OwnBroker, Process, Site, within};

/// Number of tasks of 3 ms: `rabbitmqctl` may take seconds, and must come in the middle.
const TASK_COUNT: u64 = 10_000;

/// A fleet whose two workers are in the middle of a job of some 15 seconds.
struct BusyFleet {
    broker: OwnBroker,
    site: Site,
    roles: [Process; 3],
    producer: Process,
    job: String,
    /// The connections of the roles, before the job.
    connections: String,
}

impl BusyFleet {
    async fn start(url_end: &str) -> Self {
        let broker = OwnBroker::start().await;
        let site = Site::at(broker.url() + url_end);
        let mut roles = ["sink", "worker --slots 1", "worker --slots 1"].map(|words| site.start(words));
        for (role, ready) in roles.iter_mut().zip(["serving", "taking tasks", "taking tasks"]) {
            role.wait_for(ready).await;
        }
        broker.sync_directory().await;
        let connections = broker.ctl("list_connections pid").await;
        assert!(connections.lines().count() > roles.len(), "{connections}");
        let words = format!("producer submit spin --tasks {TASK_COUNT} --micros 3000 --batch 5 --wait");
        let mut producer = site.start(&words);
        let job = producer.wait_for("job 01").await.trim_start_matches("job ").to_owned();
        site.wait_for_outcomes(&job).await;
        Self { broker, site, roles, producer, job, connections }
    }

    async fn done_count(&self) -> u64 {
        let shown = self.site.json(&format!("sink show {} --json", self.job)).await;
        shown["account"]["done"].as_u64().unwrap()
    }

    /// Asserts that the answer is exact although the fault came before the job's end, and that
    /// every role still runs.
    async fn assert_exact(self) -> serde_json::Value {
        let ended = self.producer.output().await;
        assert!(ended.answer().contains(&(TASK_COUNT * (TASK_COUNT - 1) / 2).to_string()), "{ended:?}");
        let verified = self.site.verify(&self.job).await;
        assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(TASK_COUNT), Some(0)));
        for role in self.roles {
            let ended = role.stop().await;
            assert_eq!(ended.code, 0, "{ended:?}");
        }
        self.site.json(&format!("sink show {} --json", self.job)).await
    }
}

/// A broker that is killed in the middle of a job only costs time.
#[tokio::test(flavor = "multi_thread")]
async fn broker_kill_loses_nothing() {
    let fleet = BusyFleet::start("").await;
    fleet.broker.with(|broker| broker.kill().unwrap()).await;
    let done = fleet.done_count().await;
    assert!(done < TASK_COUNT, "it was killed too late");
    fleet.broker.with(|broker| broker.restart().unwrap()).await;
    fleet.assert_exact().await;
}

/// A broker that is silent for longer than the heartbeat is like a cut network: both sides give the
/// connection up, and the roles reconnect.
#[tokio::test(flavor = "multi_thread")]
async fn silent_broker_loses_nothing() {
    let fleet = BusyFleet::start("?heartbeat=1").await;
    fleet.broker.with(|broker| broker.pause().unwrap()).await;
    tokio::time::sleep(Duration::from_secs(5)).await; // in which nothing can be seen
    let done = fleet.done_count().await;
    assert!(done < TASK_COUNT, "it fell silent too late");
    fleet.broker.with(|broker| broker.resume().unwrap()).await;
    within("every connection to be given up", async {
        let of_now = async || fleet.broker.ctl("list_connections pid").await;
        while of_now().await.lines().skip(1).any(|pid| fleet.connections.contains(pid)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    fleet.assert_exact().await;
}

/// A broker short of memory stops the fleet, and nothing is lost or done twice.
#[tokio::test(flavor = "multi_thread")]
async fn memory_alarm_loses_nothing() {
    let fleet = BusyFleet::start("").await;
    fleet.broker.ctl("set_vm_memory_high_watermark 0.000001").await;
    within("the alarm", async {
        while !fleet.broker.ctl("list_connections state").await.contains("block") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await; // for what was under way
    let held = fleet.done_count().await;
    assert!(held < TASK_COUNT, "it was short too late");
    tokio::time::sleep(Duration::from_secs(2)).await; // in which nothing happens
    assert_eq!(fleet.done_count().await, held, "results passed a broker that blocks");
    fleet.broker.ctl("set_vm_memory_high_watermark 0.4").await;
    let shown = fleet.assert_exact().await;
    assert_eq!(shown["account"]["duplicates"], 0, "{shown}");
}

/// A queue that is deleted under its consumers is declared again.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_queue_is_recreated() {
    let fleet = BusyFleet::start("").await;
    let again = fleet.site.queue(QueueRole::Requeued).to_string();
    fleet.broker.ctl(&format!("delete_queue {again}")).await;
    assert!(fleet.done_count().await < TASK_COUNT, "it was deleted too late");
    let BusyFleet { broker, site, .. } = &fleet;
    within("the queue to be there again", async {
        while !broker.ctl("list_queues name").await.contains(&again) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // And consumed again: a task that fails once comes back through it.
    let retried = site.run("producer submit spin --tasks 20 --fail-rate 0.3 --wait").await;
    assert!(retried.answer().contains("190"), "{retried:?}");
    fleet.assert_exact().await;
}

/// A full queue blocks the producer and loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn full_queue_blocks_the_producer() {
    const QUEUE_LIMIT: usize = 1_000;
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
        while waiting().await < QUEUE_LIMIT {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await; // of further tries
    let held = waiting().await;
    assert!(
        (QUEUE_LIMIT..QUEUE_LIMIT + 256).contains(&held),
        "{held} messages in a queue that takes {QUEUE_LIMIT}"
    );
    let _worker = site.start("worker --slots 2");
    let ended = submitting.output().await;
    assert!(ended.answer().contains("4498500"), "{ended:?}");
}
