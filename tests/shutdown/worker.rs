//! Workers that drain while they work.

use std::time::{Duration, Instant};

use gristmill_shared::{
    EventFilter, EventReader, QueueRole,
    wire::{self, WorkerHeartbeat},
};

use tokio::process::Command;

use crate::harness::{Process, Site, within};

/// Subscribes to the lane's events from here on.
async fn open_events(site: &Site) -> Box<dyn EventReader> {
    let lane = site.queue(QueueRole::Tasks).lane;
    site.transport().await.events(EventFilter::Lane(lane)).await.unwrap()
}

/// Waits until a heartbeat reports `slots` busy slots.
async fn wait_busy(mut events: Box<dyn EventReader>, slots: u32) {
    within("the slots to be busy", async {
        loop {
            let event = events.next().await.unwrap();
            if wire::decode::<WorkerHeartbeat>(&event).is_ok_and(|beat| beat.busy == slots) {
                return;
            }
        }
    })
    .await;
}

async fn submit(site: &Site, spin: &str) -> (Process, String) {
    let mut submit = site.start(&format!("producer submit spin {spin} --wait"));
    let job = submit.wait_for("job 01").await.trim_start_matches("job ").to_owned();
    (submit, job)
}

/// A worker that drains ends its running tasks, requeues the rest, and prints its account.
#[tokio::test]
async fn worker_drain_requeues_the_rest() {
    let site = Site::new();
    let _sink = site.start("sink");
    let mut nice = Command::new("/usr/bin/nice"); // two tasks of 6 s are a load, and there are other tests
    let inner = site.command("worker --slots 2 --grace 100s");
    nice.args(["-n", "10"])
        .arg(inner.as_std().get_program())
        .args(inner.as_std().get_args())
        .env_clear()
        .envs(inner.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let worker = Process::start("a nice worker", nice);
    // Heartbeats come every 2 s, so that one comes before the first task ends.
    let beats = open_events(&site).await;
    let (submit, job) = submit(&site, "--tasks 3 --micros 6000000 --batch 1").await;
    wait_busy(beats, 2).await;
    let left = worker.stop().await;
    assert_eq!(left.code, 0, "{left:?}");
    let account = left.stderr.lines().last().unwrap_or_default();
    assert!(account.starts_with("stopped: 2 tasks done in 2 batches, 0 errors, 0 skipped, "), "{left:?}");
    assert!(account.ends_with(" batches handed back, 0 abandoned"), "{left:?}");

    let _other = site.start("worker --slots 2");
    assert!(submit.output().await.answer().contains("3 tasks, sum 3"));
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert_eq!(shown["account"]["duplicates"].as_u64(), Some(0), "a task was run twice: {shown}");
    site.verify(&job).await;
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    let site = Site::new();
    let mut worker = site.start("worker --slots 1 --grace 1h");
    let (_submit, _) = submit(&site, "--tasks 1 --hang 0").await;
    wait_busy(open_events(&site).await, 1).await;
    worker.signal("-TERM").await;
    worker.wait_for("leaving: ").await;
    let began = Instant::now();
    let ended = worker.stop().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Tasks that do not end within the grace are left to other workers, at no cost to the tasks.
#[tokio::test]
async fn grace_expiry_requeues_the_task() {
    let site = Site::new();
    let worker = site.start("worker --slots 2 --grace 100ms");
    let (_submit, _) = submit(&site, "--tasks 2 --batch 1 --hang 0").await;
    wait_busy(open_events(&site).await, 1).await;
    let left = worker.stop().await;
    assert_eq!(left.code, 0, "{left:?}");
    let account = left.stderr.lines().last().unwrap_or_default();
    assert!(account.ends_with(" 1 batches handed back, 1 abandoned"), "{left:?}");
    let transport = site.transport().await;
    let mut again = transport.consume(&site.queue(QueueRole::Requeued), 1).await.unwrap();
    let task = within("the task", again.recv(1)).await.unwrap().remove(0);
    assert_eq!((task.deliveries_before, task.message.headers.loss), (0, 0), "it cost the task something");
    transport.close().await;
    assert!(site.is_empty(QueueRole::Tasks).await, "it is there twice");
}
